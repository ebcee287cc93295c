"""Whether a cluster's nodes take the pods of each pool: labels, taints, and what they have for pods."""

from collections import Counter
from typing import Any

from relic import pods
from relic.cluster import Cluster, Pool
from relic.parallel.config import Finding
from relic.pipeline.site import Site, bad, good, odd


def examined(site: Site) -> list[Finding]:
    nodes = site.api.ask("GET", "/api/v1/nodes")["items"]
    return [look(site, name, pool, nodes) for name, pool in site.cluster.pools.items()]


def look(site: Site, name: str, pool: Pool, nodes: list[dict]) -> Finding:
    """Counts the pods that would find room if nothing else ran; what runs now may end."""
    least = int((site.nodes or pool.nodes).partition(":")[0]) if name == "training" else 1
    fits = [room(site.cluster, pool, node) for node in nodes]
    there = sum(count for count, _ in fits)
    if there >= least:
        return good("pools", f"pool {name}: room for {there} of its pods on {sum(1 for n, _ in fits if n)} nodes")
    if pool.scales:
        return odd("pools", f"pool {name}: room for {there} of the {least} pods that are needed, until nodes are added")
    reasons = Counter(reason for count, reason in fits if not count)
    why = "; ".join(f"{count} of {len(nodes)} nodes {reason}" for reason, count in reasons.most_common(3))
    cure = "add such nodes, or correct the pool in the cluster's file"
    return bad("pools", f"pool {name} has room for {there} of the {least} pods that are needed ({why}); {cure}")


def room(cluster: Cluster, pool: Pool, node: dict) -> tuple[int, str]:
    """How many pods of a pool a node takes; why not, where it is none."""
    from kubernetes.utils.quantity import parse_quantity

    meta, spec, status = node["metadata"], node.get("spec", {}), node["status"]
    if not any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", [])):
        return 0, "are not ready"
    for label, value in pool.node_selector.items():
        if meta.get("labels", {}).get(label) != value:
            return 0, f"lack the label {label}={value}"
    for taint in spec.get("taints", []):
        if taint["effect"] != "PreferNoSchedule" and not tolerated(taint, pool):
            return 0, f"have the taint {taint['key']}={taint.get('value', '')}:{taint['effect']}"
    counts = {}
    for resource, asked in pods.resources(cluster, pool)["requests"].items():
        has = parse_quantity(status["allocatable"].get(resource, 0))
        counts[resource] = int(has // parse_quantity(asked))
        if not counts[resource]:
            return 0, f"have too little {resource} (of {asked} asked)"
    return min(counts.values()), ""


def tolerated(taint: dict[str, Any], pool: Pool) -> bool:
    return any(
        one.key == taint["key"]
        and one.effect in ("", taint["effect"])
        and (one.operator == "Exists" or one.value == taint.get("value", ""))
        for one in pool.tolerations
    )
