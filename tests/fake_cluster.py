"""An API server with a few objects in memory, for what follows a PyTorchJob: real requests, and no operator.

What happens in the cluster is a list of functions: each time a job is looked at, the next one changes the objects."""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fake_api

PATH = re.compile(r"/(?:api/v1|apis/[^/]+/[^/]+)/namespaces/[^/]+/(?P<kind>[^/]+)(/(?P<name>[^/]+)(?P<log>/log)?)?")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class FakeCluster:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict]] = {}  # kind -> name -> object
        self.logs: dict[str, list[list[str]]] = {}  # pod -> its container's starts -> lines, each after its time
        self.happens: list[Callable[[], object]] = []  # what is next
        self.refused: dict[tuple[str, str], int] = {}  # of a method and a kind, this status
        self.failing: list[int] = []  # statuses of the next answers, whatever is asked; 0: hangs up
        self.asked: list[str] = []  # method, kind and name
        self.uids = (f"uid-{number}" for number in itertools.count())
        self.seconds = itertools.count()
        self.client: Any = None

    def connect(self) -> Any:
        return self.client

    # What a test puts there

    def put(self, kind: str, name: str, /, **fields: Any) -> dict:
        metadata = {"name": name, "uid": next(self.uids), **fields.pop("metadata", {})}
        found = {"metadata": metadata, "spec": {}, "status": {}, **fields}
        self.objects.setdefault(kind, {})[name] = found
        return found

    @property
    def job(self) -> dict:
        (found,) = self.objects["pytorchjobs"].values()
        return found

    def now(self) -> str:
        """A time a second after the one before."""
        return f"{BEGAN + timedelta(seconds=next(self.seconds)):%Y-%m-%dT%H:%M:%SZ}"

    def says(self, kind: str, message: str = "") -> None:
        """A condition of the job."""
        said = [item for item in self.job["status"].get("conditions", []) if item["type"] != kind]
        self.job["status"]["conditions"] = [*said, {"type": kind, "status": "True", "message": message}]

    def run_workers(self, num: int = 2) -> None:
        for index in range(num):
            self.worker(index)
        self.says("Running")

    def worker(self, index: int, **state: Any) -> dict:
        """A new pod of the job, running unless a state is given."""
        name = f"{self.job['metadata']['name']}-worker-{index}"
        labels = {"training.kubeflow.org/job-name": self.job["metadata"]["name"]}
        status = {"name": "pytorch", "image": "", "imageID": "", "ready": True, "restartCount": 0,
                  "state": state or {"running": {}}}  # fmt: skip
        self.logs[name] = [[]]
        return self.put("pods", name, metadata={"labels": labels, "creationTimestamp": self.now()},
                        status={"phase": "Running", "containerStatuses": [status]})  # fmt: skip

    def pod(self, index: int) -> dict:
        return self.objects["pods"][f"{self.job['metadata']['name']}-worker-{index}"]

    def ends(self, index: int, code: int, message: str = "", reason: str = "Error", *, again: bool = False) -> None:
        """A worker's container ends, and may be started again."""
        status = self.pod(index)["status"]["containerStatuses"][0]
        ended = {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": self.now()}}
        status |= {"lastState": ended, "state": {"running": {}}} if again else {"state": ended}
        if again:
            status["restartCount"] += 1
            self.logs[self.pod(index)["metadata"]["name"]].append([])
        elif code == 0:
            self.pod(index)["status"]["phase"] = "Succeeded"

    def writes(self, *lines: str, index: int = 0) -> None:
        written = self.logs[self.pod(index)["metadata"]["name"]][-1]
        written += [f"{self.now()[:-1]}.{len(written):09}Z {line}" for line in lines]

    # Answers

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        found, query = PATH.fullmatch(urlsplit(url).path), parse_qs(urlsplit(url).query)
        assert found is not None, url
        kind, name = found["kind"], found["name"]
        self.asked.append(f"{method} {kind} {name or ''}".strip())
        if self.failing:
            return self.failing.pop(0), {"message": "not now"}
        if status := self.refused.get((method, kind)):
            return status, {"message": f"{kind} is forbidden: cannot" if status == 403 else "refused"}
        if (method, kind) == ("GET", "pytorchjobs") and name in self.objects.get(kind, {}) and self.happens:
            self.happens.pop(0)()
        known = self.objects.get(kind, {})
        if method == "POST":
            if body["metadata"]["name"] in known:
                return 409, {"message": "already exists"}
            return 201, self.put(kind, body["metadata"]["name"], **body)
        if name is None:
            label, _, value = query.get("labelSelector", [""])[0].partition("=")
            items = [it for it in known.values() if not label or it["metadata"].get("labels", {}).get(label) == value]
            return 200, {"items": items}
        if name not in known:
            return 404, {"message": "not found"}
        if found["log"]:
            return 200, self.log(name, query)
        if method == "DELETE":
            if body["preconditions"]["uid"] != known[name]["metadata"]["uid"]:
                return 409, {"message": "another uid"}
            del known[name]
            self.objects.pop("pods", None)
        return 200, known.get(name, {})

    def log(self, pod: str, query: dict[str, list[str]]) -> str:
        starts = self.logs[pod]
        lines = starts[-2] if query["previous"] == ["true"] else starts[-1]
        lines = lines[-int(query["tailLines"][0]) :] if "tailLines" in query else lines
        return "".join(f"{line}\n" for line in lines)


@contextmanager
def started() -> Iterator[FakeCluster]:
    """A cluster that answers to the client that it connects."""
    cluster = FakeCluster()
    with fake_api.serving(cluster) as cluster.client:
        yield cluster
