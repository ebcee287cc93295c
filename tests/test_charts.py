"""The charts, rendered by the real Helm: accepted by Kubernetes' schemas, restricted, with no right too many."""

import json
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from relic import cluster as clusters
from relic import pods
from relic.launch import deployment
from relic.options import parse
from relic.serve.config import Router, Serve

ROOT = Path(__file__).parents[1]
README = ROOT / "charts" / "relic-serve" / "README.md"
CHARTS = ("relic-platform", "relic-serve")
CLUSTERS = ("test", "one_gpu", "large")
FOREIGN = {"WorkflowTemplate", "LocalQueue", "ClusterQueue", "ResourceFlavor", "Topology"}
FOREIGN |= {"ScaledObject", "ServiceMonitor", "PodMonitor"}
EXPORTED = ("--set", "export=s3://b/store/export/0123")
KEDA = (*EXPORTED, "--set", "autoscaling.mode=keda,autoscaling.keda.serverAddress=http://prometheus.monitoring:9090")
GPU = r"nvidia\.com/gpu"  # as --set takes it
PLAIN = ("--set", "router.enabled=false,autoscaling.mode=none,snapshots=,tokenSecret.existingSecret=")
FORMS = [  # of charts/relic-serve: with its router, plain, scaled by either, watched by either
    *((name, ()) for name in CLUSTERS),
    ("large", PLAIN),
    ("large", EXPORTED),
    ("large", KEDA),
    ("test", ("--set", "monitor.kind=service")),
    ("test", ("--set", "podDisruptionBudget.enabled=false,networkPolicy.enabled=false")),
]
HELM = os.environ.get("HELM") or shutil.which("helm") or "helm"
WORKFLOW = """\
apiVersion: argoproj.io/v1alpha1
kind: WorkflowTemplate
metadata: {name: world-model}
spec: {arguments: {parameters: [{name: uid, value: '{{workflow.uid}} {{= sprig.int(1) }}'}]}}
"""
MAY = {  # account -> (group, resource) -> verbs, of the largest cluster
    "relic-step": {("argoproj.io", "workflowtaskresults"): "create patch"},
    "relic-launcher": {
        ("argoproj.io", "workflowtaskresults"): "create patch",
        ("argoproj.io", "workflows"): "get",
        ("kubeflow.org", "pytorchjobs"): "create delete get list",
        ("kueue.x-k8s.io", "localqueues"): "get",
        ("kueue.x-k8s.io", "workloads"): "list",
        ("", "pods"): "create get list",
        ("", "pods/log"): "get",
        ("", "events"): "list",
        ("", "nodes"): "list",
        ("apps", "deployments/relic-serve"): "get",
        ("", "secrets/relic-mlflow"): "get",
        ("", "secrets/relic-serve-keys"): "get",
        ("", "secrets/registry"): "get",
        ("", "serviceaccounts/relic-step"): "get",
        ("", "serviceaccounts/relic-launcher"): "get",
        ("", "serviceaccounts/relic-deploy"): "get",
    },
    "relic-deploy": {
        ("argoproj.io", "workflowtaskresults"): "create patch",
        ("apps", "deployments/relic-serve"): "get patch",
        ("", "pods"): "list",
    },
}


def helm(action: str, chart: str, *options: str) -> subprocess.CompletedProcess:
    command = [str(HELM), *action.split(), str(ROOT / "charts" / chart), *options]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rendered(chart: str, name: str, *options: str) -> list[dict[str, Any]]:
    """The objects of a chart for a cluster."""
    values = ROOT / "charts" / chart / "clusters" / f"{name}.yaml"
    place = ("--namespace", "relic", "--kube-version", "1.34", "--values", str(values))
    said = helm(f"template {chart}", chart, *place, *options)
    assert said.returncode == 0, said.stdout
    return [found for found in yaml.safe_load_all(said.stdout) if found]


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] in kinds]


def named(objects: list[dict[str, Any]], kind: str, name: str = "relic-serve") -> dict[str, Any]:
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def server(name: str = "large", *options: str) -> dict[str, Any]:
    return named(rendered("relic-serve", name, *options), "Deployment")


def router(name: str = "large", *options: str) -> dict[str, Any]:
    return named(rendered("relic-serve", name, *options), "Deployment", "relic-serve-router")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("chart", "name", "options"),
    [("relic-platform", name, ()) for name in CLUSTERS] + [("relic-serve", *form) for form in FORMS],
)
def test_a_chart_is_linted_and_what_it_renders_is_strictly_valid(chart: str, name: str, options: tuple) -> None:
    values = ROOT / "charts" / chart / "clusters" / f"{name}.yaml"
    linted = helm("lint --strict", chart, "--values", str(values), *options)
    assert linted.returncode == 0, linted.stdout
    objects = rendered(chart, name, *options)
    for found in objects:
        assert found["metadata"]["labels"]["app.kubernetes.io/name"] == chart
        if found["kind"] not in FOREIGN:
            kubernetes_validate.validate(found, "1.34", strict=True)
    assert not of_kind(objects, "Secret", "Pod", "Job")


@pytest.mark.cluster
def test_the_workflow_passes_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "workflow.yaml").write_text(WORKFLOW)
    objects = rendered("relic-platform", "test", "--set-file", f"workflows={tmp_path / 'workflow.yaml'}")
    assert of_kind(objects, "WorkflowTemplate") == [yaml.safe_load(WORKFLOW)]


@pytest.mark.cluster
@pytest.mark.parametrize("account", MAY)
def test_an_account_may_do_what_its_code_does_and_no_more(account: str) -> None:
    objects = rendered("relic-platform", "large")
    roles = {found["metadata"]["name"]: found for found in of_kind(objects, "Role", "ClusterRole")}
    may: dict[tuple[str, str], str] = {}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        if account in {subject["name"] for subject in binding["subjects"]}:
            for rule in roles[binding["roleRef"]["name"]]["rules"]:
                for resource in rule["resources"]:
                    for name in [f"/{only}" for only in rule.get("resourceNames", [])] or [""]:
                        may[rule["apiGroups"][0], resource + name] = " ".join(sorted(rule["verbs"]))
    assert may == MAY[account]


@pytest.mark.cluster
def test_without_kueue_serving_and_nodes_there_are_no_rights_to_them() -> None:
    options = ("--set", "serving=", "--set", "nodes.read=false")
    objects = rendered("relic-platform", "test", *options)
    said = yaml.safe_dump(of_kind(objects, "Role", "ClusterRole"))
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding", "LocalQueue")
    assert not [word for word in ("kueue", "deployments", "nodes") if word in said]


@pytest.mark.cluster
@pytest.mark.parametrize("name", CLUSTERS)
def test_the_pods_pass_restricted_pod_security(name: str) -> None:
    for found in of_kind(rendered("relic-serve", name), "Deployment"):
        template = found["spec"]["template"]["spec"]
        (container,) = template["containers"]
        assert pods.POD_SECURITY.items() <= template["securityContext"].items()
        assert container["securityContext"] == pods.CONTAINER_SECURITY
        assert {kind for volume in template["volumes"] for kind in volume} <= {"name", "emptyDir", "secret"}
        assert {"requests", "limits"} == set(container["resources"])
        assert all(container[f"{probe}Probe"] for probe in ("startup", "readiness", "liveness"))
    assert server(name)["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.cluster
def test_the_server_has_no_pod_before_there_is_an_export() -> None:
    empty, full = server(), server("large", "--set", "export=s3://b/store/export/0123")
    assert (empty["spec"]["replicas"], full["spec"]["replicas"]) == (0, 4)
    assert empty["metadata"]["annotations"][deployment.REPLICAS] == "4"
    (container,) = full["spec"]["template"]["spec"]["containers"]
    assert container["name"] == deployment.CONTAINER
    assert {"name": deployment.EXPORT, "value": "s3://b/store/export/0123"} in container["env"]
    assert container["args"][0] == f"--export=$({deployment.EXPORT})"


@pytest.mark.cluster
def test_the_server_is_given_options_that_it_knows() -> None:
    (container,) = server("large", "--set", "textEncoder=/umt5")["spec"]["template"]["spec"]["containers"]
    arguments = [argument.replace("$(RELIC_EXPORT)", "s3://b/e") for argument in container["args"]]
    cfg = parse(Serve, arguments, "relic serve", "")
    assert (cfg.export, cfg.api_keys, cfg.text_encoder) == ("s3://b/e", "/etc/relic-keys/keys", "/umt5")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (f"gpus=4,resources.limits.{GPU}=4,resources.requests.{GPU}=4", {"gpus": 4}),
        ("chunk=1", {"chunk": 1}),
        ("context=noisy", {"context": "noisy"}),
        ("compile=false,graphs=false", {"compile": False, "graphs": False}),
        ("origins={https://a.example,https://b.example}", {"origins": ("https://a.example", "https://b.example")}),
        ("imageMemoryBytes=2147483648,rewindPoints=0", {"image_memory": 2 << 30, "rewind_points": 0}),
    ],
)
def test_a_value_reaches_the_server(values: str, said: dict[str, Any]) -> None:
    (container,) = server("large", *EXPORTED, "--set", values)["spec"]["template"]["spec"]["containers"]
    cfg = asdict(parse(Serve, container["args"], "relic serve", ""))
    assert said.items() <= cfg.items()


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "values", "device"),
    [("large", "device=auto", "cuda"), ("large", "device=cuda:0", "cuda:0"), ("test", "device=auto", "auto")],
)
def test_a_pod_with_a_gpu_serves_on_it_or_not_at_all(name: str, values: str, device: str) -> None:
    (container,) = server(name, *EXPORTED, "--set", values)["spec"]["template"]["spec"]["containers"]
    assert parse(Serve, container["args"], "relic serve", "").device == device


@pytest.mark.cluster
def test_several_processes_need_as_many_gpus_or_the_word_that_it_is_the_cpu() -> None:
    values = str(ROOT / "charts" / "relic-serve" / "clusters" / "test.yaml")
    found = helm("template x", "relic-serve", "--kube-version", "1.34", "--values", values, "--set", "gpus=2")
    assert "gpus is 2 and resources.limits has 0 of nvidia.com/gpu" in found.stdout
    assert server("test", "--set", "gpus=2,device=cpu")


def server_arguments() -> list[str]:
    (container,) = server()["spec"]["template"]["spec"]["containers"]
    return container["args"]


@pytest.mark.cluster
def test_the_router_is_given_options_that_it_knows_and_the_servers_secret() -> None:
    (container,) = router()["spec"]["template"]["spec"]["containers"]
    cfg = parse(Router, container["args"], "relic router", "")
    assert (cfg.addresses, cfg.deletion_cost, cfg.log_format) == ((("relic-serve-servers", 8000),), True, "json")
    assert f"--token-secret={cfg.token_secret}" in server_arguments()


@pytest.mark.cluster
def test_a_folder_can_be_mounted_into_the_server() -> None:
    volume = {"name": "umt5", "persistentVolumeClaim": {"claimName": "umt5", "readOnly": True}}
    mount = {"name": "umt5", "mountPath": "/umt5", "readOnly": True}
    volumes, mounts = f"extraVolumes={json.dumps([volume])}", f"extraVolumeMounts={json.dumps([mount])}"
    found = server("large", "--set-json", volumes, "--set-json", mounts)
    kubernetes_validate.validate(found, "1.34", strict=True)
    template = found["spec"]["template"]["spec"]
    assert volume in template["volumes"]
    assert mount in template["containers"][0]["volumeMounts"]


@pytest.mark.cluster
def test_a_roll_out_has_time_for_a_drain_and_a_start() -> None:
    spec = server("one_gpu", "--set", "drainSeconds=1404")["spec"]
    start = spec["template"]["spec"]["containers"][0]["startupProbe"]
    started = start["failureThreshold"] * start["periodSeconds"]
    assert spec["progressDeadlineSeconds"] > spec["template"]["spec"]["terminationGracePeriodSeconds"] + started


@pytest.mark.cluster
@pytest.mark.parametrize(("form", "sleeps"), [((), []), (PLAIN, [9])])
def test_a_pod_has_time_to_drain_before_it_is_killed(form: tuple, sleeps: list[int]) -> None:
    template = server("large", *form, "--set", "drainSeconds=77,saveSeconds=66,preStopSeconds=9")["spec"]["template"][
        "spec"
    ]
    assert template["terminationGracePeriodSeconds"] > 77 + 66 + sum(sleeps)
    assert sleeps_of(template) == sleeps


def sleeps_of(pod: dict[str, Any]) -> list[int]:
    """How long the containers of a pod that is told to end wait until they hear of it."""
    return [one["lifecycle"]["preStop"]["sleep"]["seconds"] for one in pod["containers"] if "lifecycle" in one]


@pytest.mark.cluster
def test_a_server_that_hangs_is_killed_without_the_time_for_a_drain() -> None:
    (container,) = server()["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{name}Probe"] for name in ("startup", "liveness")]
    assert [probe["terminationGracePeriodSeconds"] for probe in probes] == [30, 30]
    assert "terminationGracePeriodSeconds" not in container["readinessProbe"]  # the API server refuses it there


@pytest.mark.cluster
def test_a_pod_that_does_not_come_up_holds_no_drain_of_a_node_up() -> None:
    budgets = of_kind(rendered("relic-serve", "large"), "PodDisruptionBudget")
    assert [found["metadata"]["name"] for found in budgets] == ["relic-serve", "relic-serve-router"]
    assert {found["spec"]["unhealthyPodEvictionPolicy"] for found in budgets} == {"AlwaysAllow"}


# The router, and who reaches what


@pytest.mark.cluster
def test_people_reach_the_router_and_the_router_every_server_s_own_address() -> None:
    objects = rendered("relic-serve", "large")
    people, servers = named(objects, "Service"), named(objects, "Service", "relic-serve-servers")
    assert people["spec"]["selector"] == router()["spec"]["selector"]["matchLabels"]
    assert servers["spec"]["selector"] == server()["spec"]["selector"]["matchLabels"]
    assert (servers["spec"]["clusterIP"], servers["spec"]["publishNotReadyAddresses"]) == ("None", True)
    (container,) = router()["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "--replicas=relic-serve-servers:8000"
    assert sleeps_of(router()["spec"]["template"]["spec"]) == [5]


@pytest.mark.cluster
def test_without_the_router_the_service_leads_an_address_to_the_same_server() -> None:
    objects = rendered("relic-serve", "large", *PLAIN)
    assert not [found for found in objects if "router" in found["metadata"]["name"]]
    (service,) = of_kind(objects, "Service")
    assert service["spec"]["selector"] == server("large", *PLAIN)["spec"]["selector"]["matchLabels"]
    assert service["spec"]["sessionAffinity"] == "ClientIP"


@pytest.mark.cluster
def test_the_readme_s_ingress_leads_to_the_page_and_the_api_and_to_nothing_else() -> None:
    found = re.search(r"    apiVersion: networking.*?(?=\n\n\S)", README.read_text(), re.DOTALL)
    assert found
    ingress = yaml.safe_load(textwrap.dedent(found[0]))
    kubernetes_validate.validate(ingress, "1.34", strict=True)
    (rule,) = ingress["spec"]["rules"]
    assert {one["path"]: one["pathType"] for one in rule["http"]["paths"]} == {
        "/": "Exact", "/web": "Prefix", "/v1": "Prefix"
    }  # fmt: skip
    port = named(rendered("relic-serve", "large"), "Service")["spec"]["ports"][0]["name"]
    assert {json.dumps(one["backend"]) for one in rule["http"]["paths"]} == {
        json.dumps({"service": {"name": "relic-serve", "port": {"name": port}}})
    }


@pytest.mark.cluster
def test_only_the_router_and_who_reads_metrics_reach_a_server() -> None:
    objects = rendered("relic-serve", "large")
    servers, routers = (named(objects, "NetworkPolicy", f"relic-serve{part}")["spec"] for part in ("", "-router"))
    metrics = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert [rule["from"] for rule in servers["ingress"]] == [[{"podSelector": routers["podSelector"]}, metrics]]
    assert [rule["from"] for rule in routers["ingress"]] == [[{"podSelector": {}}, metrics]]
    assert {"podSelector": servers["podSelector"]} in [to for rule in routers["egress"] for to in rule.get("to", ())]
    (plain,) = of_kind(rendered("relic-serve", "large", *PLAIN), "NetworkPolicy")
    assert [rule["from"] for rule in plain["spec"]["ingress"]] == [[{"podSelector": {}}, metrics]]


@pytest.mark.cluster
def test_only_a_router_that_notes_costs_may_change_pods_and_has_a_token() -> None:
    objects = rendered("relic-serve", "large")
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    assert [subject["name"] for subject in binding["subjects"]] == ["relic-serve-router"]
    template = router()["spec"]["template"]["spec"]
    assert (template["serviceAccountName"], template["automountServiceAccountToken"]) == ("relic-serve-router", True)
    without = ("--set", "router.deletionCost=false")
    assert router("large", *without)["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert not of_kind(rendered("relic-serve", "large", *without), "Role", "RoleBinding")


# Autoscaling: the core kind is validated above, others only compared with what is written here


@pytest.mark.cluster
def test_an_autoscaler_is_fed_with_the_share_of_places_that_are_taken() -> None:
    found = named(rendered("relic-serve", "large"), "HorizontalPodAutoscaler")["spec"]
    assert found["scaleTargetRef"]["name"] == server()["metadata"]["name"]
    assert (found["minReplicas"], found["maxReplicas"]) == (4, 16)
    (metric,) = found["metrics"]
    assert metric["pods"]["metric"]["name"] == "relic_session_slots_used"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "700m"}
    assert found["behavior"] == yaml.safe_load(PACE)


PACE = """\
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Pods, value: 4, periodSeconds: 60}]
scaleDown:
  stabilizationWindowSeconds: 300
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
"""
SCALED = """\
scaleTargetRef: {name: relic-serve}
minReplicaCount: 4
maxReplicaCount: 16
pollingInterval: 15
triggers:
  - type: prometheus
    metricType: AverageValue
    metadata:
      serverAddress: http://prometheus.monitoring:9090
      query: sum(relic_sessions_active{namespace="relic",pod=~"relic-serve-[^-]+-[^-]+"})
      threshold: "1.4"
      ignoreNullValues: "false"
"""
CHOSEN = "selector: {matchLabels: {app.kubernetes.io/name: relic-serve, app.kubernetes.io/instance: relic-serve}}"
READ = "[{port: http, path: /metrics, interval: 15s}]"


@pytest.mark.cluster
def test_keda_s_object_is_as_it_is_written_here_and_there_only_with_an_export() -> None:
    (found,) = [one for one in rendered("relic-serve", "large", *KEDA) if one["apiVersion"] == "keda.sh/v1alpha1"]
    pace = {"horizontalPodAutoscalerConfig": {"behavior": yaml.safe_load(PACE)}}
    assert (found["kind"], found["spec"]) == ("ScaledObject", {**yaml.safe_load(SCALED), "advanced": pace})
    assert not of_kind(rendered("relic-serve", "large", *KEDA, "--set", "export="), "ScaledObject")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("kind", "rendered_kind", "place"),
    [("service", "ServiceMonitor", "endpoints"), ("pod", "PodMonitor", "podMetricsEndpoints")],
)
def test_a_monitor_is_as_it_is_written_here(kind: str, rendered_kind: str, place: str) -> None:
    options = ("--set", f"monitor.kind={kind},monitor.labels.release=prometheus")
    objects = rendered("relic-serve", "test", *options)
    (found,) = [one for one in objects if one["apiVersion"] == "monitoring.coreos.com/v1"]
    assert (found["kind"], found["metadata"]["labels"]["release"]) == (rendered_kind, "prometheus")
    assert found["spec"] == yaml.safe_load(f"{CHOSEN}\n{place}: {READ}")
    assert not of_kind(rendered("relic-serve", "test"), rendered_kind)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("chart", "option", "said"),
    [
        ("relic-platform", "kueue.enable=true", "enable.* not allowed"),
        ("relic-platform", "networkPolicy.egress[0].namespace=minio", "egress.*oneOf"),
        ("relic-platform", "kueue.flavors[0].quotas.tpu=1", "serving has no quota of tpu, which the first one has"),
        ("relic-platform", "kueue.flavors[2].name=x,kueue.flavors[2].topology=racks", "flavors/2.*nodeLabels"),
        ("relic-platform", "kueue.topologies[1].name=x", "topologies/1.*levels"),
        ("relic-serve", "replica=2", "replica.* not allowed"),
        ("relic-serve", "memoryDtype=fp4", "memoryDtype"),
        ("relic-serve", "progressSeconds=1895", "progressSeconds is 1895; it must be more than 1895"),
        ("relic-serve", "router.replica=2", "replica.* not allowed"),
        ("relic-serve", "autoscaling.mode=vpa", "autoscaling.*mode"),
        ("relic-serve", "autoscaling.scaleDown.periodSeconds=1801", "periodSeconds"),
        ("relic-serve", "autoscaling.maxReplicas=3", "maxReplicas is 3; it must be at least replicas, which is 4"),
        ("relic-serve", "autoscaling.mode=keda", "give autoscaling.keda.serverAddress, Prometheus's address"),
        ("relic-serve", "tokenSecret.existingSecret=", "give tokenSecret.existingSecret, which the router"),
        ("relic-serve", "gpus=4", "gpus is 4 and resources.limits has 1 of nvidia.com/gpu"),
        ("relic-serve", "maxSurge=0%", "maxSurge and maxUnavailable are both 0"),
        ("relic-serve", "environment.RELIC_EXPORT=x", "environment has RELIC_EXPORT; .* the chart's own"),
        ("relic-serve", "environment.AWS_SESSION_TOKEN=x", "AWS_SESSION_TOKEN; .* come by storeSecret"),
        ("relic-serve", "snapshots=/scratch", "snapshots"),
        ("relic-serve", "origins[0]=https://a.example/page", "origins"),
        ("relic-serve", "extraVolumeMounts[0].name=umt5", "mountPath"),
        ("relic-serve", "image=", "give image: the serve image by digest"),
        ("relic-serve", "openToAll=true", "give apiKeys.existingSecret, or openToAll: true if everybody may walk"),
    ],
)
def test_a_value_that_is_wrong_is_refused_in_words(chart: str, option: str, said: str) -> None:
    values = ROOT / "charts" / chart / "clusters" / "large.yaml"
    found = helm("template x", chart, "--kube-version", "1.34", "--values", str(values), "--set", option)
    assert found.returncode != 0
    assert re.search(said, found.stdout)


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["my.walks", "1st", "a" * 47])
def test_a_release_s_name_that_no_service_may_have_is_refused_in_words(name: str) -> None:
    values = ROOT / "charts" / "relic-serve" / "clusters" / "large.yaml"
    found = helm(f"template {name}", "relic-serve", "--kube-version", "1.34", "--values", str(values))
    assert f"the release's name is {name}; it must be a Service's too" in found.stdout


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("export=s3://b/e", "relic-serve serves s3://b/e at http://relic-serve.relic:8000"),
        ("replicas=3", "relic-serve has no servers yet: the first run that passes its gate starts 3."),
        ("snapshots=", "the walks on a server that the autoscaler takes away end with it"),
        ("networkPolicy.egress=null", "servers reach no store"),
        ("networkPolicy.metrics=null", "Prometheus in another namespace reaches no server"),
        ("service.type=NodePort", "networkPolicy.from names this namespace only: nobody else gets past the NodePort"),
    ],
)
def test_the_notes_say_what_was_made_and_what_is_shut(tmp_path: Path, option: str, said: str) -> None:
    chart = shutil.copytree(ROOT / "charts" / "relic-serve", tmp_path / "chart")
    (chart / "templates" / "NOTES.txt").rename(chart / "notes")  # under its own name it is not rendered
    (chart / "templates" / "notes.yaml").write_text('notes: {{ tpl (.Files.Get "notes") . | quote }}')
    values = ("--values", str(chart / "clusters" / "large.yaml"), "--set", option)
    place = ("--namespace", "relic", "--kube-version", "1.34", "--show-only", "templates/notes.yaml")
    found = helm("template relic-serve", str(chart), *place, *values)
    assert said in yaml.safe_load(found.stdout)["notes"]


@pytest.mark.parametrize("chart", CHARTS)
def test_no_part_of_the_values_takes_what_it_does_not_know(chart: str) -> None:
    def parts(schema: Any) -> Iterator[dict[str, Any]]:
        if isinstance(schema, dict):
            yield from [schema] if "properties" in schema else []
        for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            yield from parts(inner)

    schema = json.loads((ROOT / "charts" / chart / "values.schema.json").read_text())
    assert all(part.get("additionalProperties") is False for part in parts(schema))


# What is said twice agrees


@pytest.mark.cluster
@pytest.mark.parametrize("name", CLUSTERS)
def test_values_agree_with_the_cluster_s_file(name: str) -> None:
    cluster = clusters.load(ROOT / "workflows" / "clusters" / f"{name}.yaml")
    platform = rendered("relic-platform", name)
    accounts = {found["metadata"]["name"] for found in of_kind(platform, "ServiceAccount")}
    assert accounts == {cluster.accounts.step, cluster.accounts.launcher, cluster.accounts.deploy}
    assert [found["metadata"]["name"] for found in of_kind(platform, "LocalQueue")] == [cluster.queue] * bool(
        cluster.queue
    )
    values = yaml.safe_load((ROOT / "charts" / "relic-platform" / "clusters" / f"{name}.yaml").read_text())
    assert cluster.serving is not None
    named = {cluster.store_secret, cluster.mlflow_secret, cluster.serving.keys_secret, *cluster.images.pull_secrets}
    assert set(values["secrets"]) == named - {""}
    template = server(name)["spec"]["template"]["spec"]
    (container,) = template["containers"]
    assert container["image"] == cluster.images.serve
    assert bool(container.get("envFrom")) == bool(cluster.store_secret)
    assert cluster.environment.items() <= {one["name"]: one["value"] for one in container["env"]}.items()
    assert ("--open-to-all" in container["args"]) == (not cluster.serving.keys_secret)
    assert cluster.serving.address == "http://relic-serve:8000"


@pytest.mark.cluster
def test_the_queue_admits_trainings_that_ask_for_a_topology() -> None:
    training = clusters.load(ROOT / "workflows" / "clusters" / "large.yaml").pool("training")
    objects = rendered("relic-platform", "large")
    levels = {
        found["metadata"]["name"]: [level["nodeLabel"] for level in found["spec"]["levels"]]
        for found in of_kind(objects, "Topology")
    }
    (flavor,) = [found["spec"] for found in of_kind(objects, "ResourceFlavor") if "topologyName" in found["spec"]]
    assert flavor["nodeLabels"].items() <= training.node_selector.items()
    assert training.topology in levels[flavor["topologyName"]]


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["one_gpu", "large"])
def test_the_server_is_not_given_the_credentials_of_the_runs(name: str) -> None:
    cluster = clusters.load(ROOT / "workflows" / "clusters" / f"{name}.yaml")
    (container,) = server(name)["spec"]["template"]["spec"]["containers"]
    assert {"secretRef": {"name": cluster.store_secret}} not in container.get("envFrom", [])
    accounts = of_kind(rendered("relic-platform", name) + rendered("relic-serve", name), "ServiceAccount")
    given = {found["metadata"]["name"]: found["metadata"].get("annotations", {}) for found in accounts}
    own = given.pop("relic-serve")
    assert not [annotations for annotations in given.values() if annotations and annotations == own]


@pytest.mark.parametrize("chart", CHARTS)
def test_the_readme_has_every_value_and_its_default(chart: str) -> None:
    values = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())
    table = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (ROOT / "charts" / chart / "README.md").read_text(), re.M))
    assert table == {name: json.dumps(value) for name, value in leaves(values, table)}


def leaves(values: dict[str, Any], named: dict[str, str], prefix: str = "") -> list[tuple[str, Any]]:
    """Values by their names with dots, down to those that the table names."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        deeper = isinstance(value, dict) and value and name not in named
        found += leaves(value, named, f"{name}.") if deeper else [(name, value)]
    return found
