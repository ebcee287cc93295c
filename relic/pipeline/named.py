"""Whether what a cluster's file names is there: its queue, storage class, secrets, accounts and server."""

from relic.parallel.config import Finding
from relic.pipeline.site import Site, bad, good, odd

KEYS = {  # of the secrets that a cluster's file names
    "store_secret": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "mlflow_secret": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "keys_secret": ("deploy",),
}


def queue(site: Site) -> list[Finding]:
    name, space = site.cluster.queue, site.cluster.namespace
    if not name:
        return []
    there = site.api.get("localqueues", name)
    if there is None:
        return [bad("queue", f"LocalQueue {name} does not exist in namespace {space}; install charts/relic-platform "
                    "with kueue.enabled, or correct queue in the cluster's file")]  # fmt: skip
    state = {item["type"]: item for item in there.get("status", {}).get("conditions", [])}.get("Active", {})
    if state.get("status") != "True":
        said = state.get("message", "Kueue has not looked at it yet")
        return [bad("queue", f"LocalQueue {name} is not active ({said}); mend the ClusterQueue that it names")]
    return [good("queue", f"LocalQueue {name} is active")]


def storage(site: Site) -> list[Finding]:
    name = site.cluster.storage_class
    if not name:
        return []
    if site.api.ask("GET", f"/apis/storage.k8s.io/v1/storageclasses/{name}") is None:
        return [bad("storage", f"storage class {name} does not exist; correct storage_class in the cluster's file "
                    "(kubectl get storageclass)")]  # fmt: skip
    return [good("storage", f"storage class {name} exists")]


def secrets(site: Site) -> list[Finding]:
    """Those that the cluster's file names, and their keys."""
    cluster, space = site.cluster, site.cluster.namespace
    wanted = {cluster.store_secret: KEYS["store_secret"], cluster.mlflow_secret: KEYS["mlflow_secret"]}
    if cluster.serving:
        wanted[cluster.serving.keys_secret] = KEYS["keys_secret"]
    wanted |= dict.fromkeys(cluster.images.pull_secrets, ())
    found = []
    for name, keys in wanted.items():
        if not name:
            continue
        there = site.api.get("secrets", name)
        given = " ".join(f"--from-literal={key}=…" for key in keys)
        make = f"kubectl -n {space} create secret generic {name} {given}"
        if not keys:
            make = f"kubectl -n {space} create secret docker-registry {name} --docker-server=…"
        if there is None:
            found.append(bad("secrets", f"secret {name} does not exist in namespace {space}; make it: {make}"))
        elif missing := [key for key in keys if key not in there.get("data", {})]:
            found.append(bad("secrets", f"secret {name} has no {', '.join(missing)}; make it again: {make}"))
        else:
            found.append(good("secrets", f"{name} is there"))
    return found


def accounts(site: Site) -> list[Finding]:
    names, space = site.cluster.accounts, site.cluster.namespace
    wanted = [names.step, names.launcher, *([names.deploy] if site.deploys else [])]
    gone = [name for name in wanted if site.api.get("serviceaccounts", name) is None]
    if gone:
        cure = "install charts/relic-platform, or correct accounts in the cluster's file"
        return [bad("accounts", f"service accounts do not exist in namespace {space}: {', '.join(gone)}; {cure}")]
    return [good("accounts", f"{', '.join(wanted)} are there")]


def server(site: Site) -> list[Finding]:
    """The Deployment that a run rolls its export out to."""
    cluster = site.cluster
    if not (site.deploys and cluster.serving):
        return []
    name, image = cluster.serving.deployment, cluster.images.serve
    if (there := site.api.get("deployments", name)) is None:
        cure = "install charts/relic-serve, or run with deploy=no"
        return [bad("server", f"Deployment {name} does not exist in namespace {cluster.namespace}; {cure}")]
    images = [container["image"] for container in there["spec"]["template"]["spec"]["containers"]]
    if image not in images:
        cure = "upgrade charts/relic-serve, or correct the cluster's file"
        return [odd("server", f"Deployment {name} runs {', '.join(images)} and images.serve is {image}; {cure}")]
    return [good("server", f"Deployment {name} is there")]
