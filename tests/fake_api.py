"""A Kubernetes API server in memory, for the real client: objects by their paths, discovery, rights, logs. `serving` is
the way to it, and to any other object that answers requests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
SERVED = {
    "argoproj.io/v1alpha1": ["workflows", "workflowtemplates"],
    "kubeflow.org/v1": ["pytorchjobs"],
    "kueue.x-k8s.io/v1beta2": ["localqueues", "workloads"],
}


class Answers(Protocol):
    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        """The status, 0 to hang up, and an object or text."""


class FakeApi:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}  # by path
        self.logs: dict[str, str] = {}  # of pods
        self.forbidden: set[tuple[str, str]] = set()  # verb and resource
        self.served = dict(SERVED)
        self.failing: list[int] = []  # statuses of the next answers, whatever is asked
        self.on_create: Callable[[dict[str, Any]], None] = lambda made: None  # what a controller does to a new object

    def put(self, path: str, *, labels: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        """An object at a path; returns it."""
        name = path.rpartition("/")[2]
        meta = {"name": name, "uid": f"uid-{name}", "labels": labels or {}, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.objects[path] = {**fields, "metadata": {**meta, **fields.get("metadata", {})}}
        return self.objects[path]

    def of(self, resource: str) -> list[dict[str, Any]]:
        return [found for path, found in self.objects.items() if parts_of(path)[0] == resource]

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        if self.failing:
            return refusal(self.failing.pop(0), "the server is starting")
        if path == "/version":
            return 200, {"gitVersion": "v1.34.4"}
        if path.startswith("/apis") and path.count("/") < 4:
            return self.discovery(path.removeprefix("/apis").strip("/"))
        resource, name, part = parts_of(path)
        if resource == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            wanted = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return 201, {"status": {"allowed": (asked["verb"], wanted) not in self.forbidden}}
        verb = VERBS.get(method) or ("get" if name else "list")
        if (verb, resource) in self.forbidden:
            return refusal(403, f"{resource} is forbidden: cannot {verb}")
        if verb == "create":
            return self.created(path, body)
        if verb == "list":
            label, _, value = query.get("labelSelector", ["="])[0].partition("=")
            below = [found for key, found in self.objects.items() if key.rpartition("/")[0] == path]
            return 200, {"items": [one for one in below if one["metadata"]["labels"].get(label, "") == value]}
        if path.removesuffix("/log") not in self.objects:
            return refusal(404, f'{resource} "{name}" not found')
        if part == "log":
            return 200, self.logs[name]
        if verb == "delete":
            if body and body["preconditions"]["uid"] != self.objects[path]["metadata"]["uid"]:
                return refusal(409, "another uid")
            return 200, self.objects.pop(path)
        if verb == "patch":
            self.objects[path] = merged(self.objects[path], body)
        return 200, self.objects[path]

    def created(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        meta = body["metadata"]
        name = meta.get("name") or f"{meta['generateName']}{len(self.objects)}"
        if f"{path}/{name}" in self.objects:
            return refusal(409, f"{name} already exists")
        found = self.put(f"{path}/{name}", **{**body, "metadata": {"labels": {}, **meta, "name": name}})
        self.on_create(found)
        return 201, found

    def discovery(self, name: str) -> tuple[int, Any]:
        groups = {}
        for known in self.served:
            group, _, version = known.partition("/")
            one = {"version": version, "groupVersion": known}
            groups[group] = {"name": group, "versions": [one], "preferredVersion": one}
        if not name:
            return 200, {"groups": list(groups.values())}
        if name in self.served:
            return 200, {"resources": [{"name": resource} for resource in self.served[name]]}
        return (200, groups[name]) if name in groups else refusal(404, f"{name} is not served")


def parts_of(path: str) -> tuple[str, str, str]:
    """(resource, name, subresource)"""
    rest = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, name, part, *_ = [*rest, "", "", ""]
    return resource, name, part


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    deep = {name: merged(old.get(name, {}), value) for name, value in new.items() if isinstance(value, dict)}
    return {**old, **new, **deep}


def refusal(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "code": code, "message": message}


@contextmanager
def serving(fake: Answers) -> Iterator[client.ApiClient]:
    """The real client, on the fake's server."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, said = fake.answer(self.command, self.path, json.loads(data) if data else None)
            if not code:
                return
            text = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, *said: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    settings.retries = False
    try:
        with client.ApiClient(settings) as api:
            yield api
            api.rest_client.pool_manager.clear()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
