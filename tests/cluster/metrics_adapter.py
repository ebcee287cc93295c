"""Pods' own gauges as custom metrics of Kubernetes: what an autoscaler asks where no Prometheus and adapter of it are.

It serves custom.metrics.k8s.io/v1beta2 over TLS: for each pod that is asked for, what its /metrics on port 8000 says at
that moment. Standard library only; it runs in a pod, under an account that may list pods. For tests: who asks is not
checked.
"""

import json
import os
import re
import ssl
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from urllib.request import Request, urlopen

VERSION = "custom.metrics.k8s.io/v1beta2"
METRIC = "relic_session_slots_used"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POD_S = 2.0  # the longest wait for a pod


def pods(namespace: str, selector: str) -> list[dict]:
    """The running pods that a selector of labels chooses."""
    place = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    url = f"{place}/api/v1/namespaces/{namespace}/pods?labelSelector={quote(selector)}"
    asked = Request(url, headers={"authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"})
    with urlopen(asked, context=ssl.create_default_context(cafile=ACCOUNT / "ca.crt")) as answer:
        return [pod for pod in json.load(answer)["items"] if pod["status"].get("podIP")]


def gauge(pod: dict, name: str) -> float | None:
    """The value of a gauge without labels; None where the pod does not answer, or has none."""
    try:
        with urlopen(f"http://{pod['status']['podIP']}:8000/metrics", timeout=POD_S) as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    except OSError:
        return None
    return float(found[1]) if found else None


def values(namespace: str, name: str, selector: str) -> dict:
    """A MetricValueList of all pods that have a value."""
    items = []
    for pod in pods(namespace, selector):
        if (value := gauge(pod, name)) is not None:
            described = {"kind": "Pod", "apiVersion": "v1", "namespace": namespace, "name": pod["metadata"]["name"]}
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            items.append({"describedObject": described, "metric": {"name": name, "selector": None},
                          "timestamp": now, "value": f"{round(1000 * value)}m"})  # fmt: skip
    return {"kind": "MetricValueList", "apiVersion": VERSION, "metadata": {}, "items": items}


def resources() -> dict:
    """What there is, for discovery."""
    found = {"name": f"pods/{METRIC}", "singularName": "", "namespaced": True, "kind": "MetricValueList"}
    listed = [{**found, "verbs": ["get"]}]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": listed}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = re.fullmatch(rf"/apis/{VERSION}/namespaces/([^/]+)/pods/\*/{METRIC}", unquote(url.path))
        if asked:
            self.answer(200, values(asked[1], METRIC, parse_qs(url.query).get("labelSelector", [""])[0]))
        elif url.path == f"/apis/{VERSION}":
            self.answer(200, resources())
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def answer(self, status: int, said: dict) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(folder: str) -> None:
    """Serves with the certificate tls.crt and its key tls.key of a folder."""
    server = ThreadingHTTPServer(("", 6443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
