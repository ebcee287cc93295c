"""The one way to a Kubernetes API server: as the pod's account, or by KUBECONFIG. Objects are plain values, as JSON has
them. Needs the extra `cluster`.

A server that is away for a while costs patience and nothing else; what it refuses is one sentence. A server that starts
refuses for a moment even whom it trusts, for it has not read the roles yet, and a token that was just renewed may be
refused too. So a pod of a run believes a refusal only where nothing was ever granted to it."""

import json
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from relic.mistakes import UserError
from relic.verdict import Unreachable

ANSWER_S = 10  # the longest for one answer; the client ignores what is no whole number
PATIENCE_S = 20.0  # with a server that does not answer
PAUSE_S = 1.0  # between two tries
FORBIDDEN, ABSENT, EXISTS, BUSY = 403, 404, 409, 429
DENIED = (401, FORBIDDEN)
GROUPS = {  # and version, of the objects that are not Kubernetes' core
    "workflows": "argoproj.io/v1alpha1",
    "workflowtemplates": "argoproj.io/v1alpha1",
    "pytorchjobs": "kubeflow.org/v1",
    "localqueues": "kueue.x-k8s.io/v1beta2",
    "workloads": "kueue.x-k8s.io/v1beta2",
    "deployments": "apps/v1",
}
OWN = ("/api/v1/", "/apis/apps/")  # whose lists a patch merges by the names in them; those of others it replaces


class Refused(UserError):
    """A request that the server does not grant: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"the cluster refuses this: {why}")
        self.status, self.why = status, why


class Api:
    """The API server, for the objects of one namespace. `in_run` says that this is a pod of a run; `patience` is asked
    for seconds at each try."""

    def __init__(
        self, namespace: str, *, in_run: bool = False, patience: Callable[[], float] = lambda: PATIENCE_S
    ) -> None:
        self.namespace, self.in_run, self.patience = namespace, in_run, patience
        self.client, self.was_granted = connect(), False

    @property
    def host(self) -> str:
        return self.client.configuration.host

    def place(self, kind: str, *name: str) -> str:
        """The path of all objects of a kind, of one, or of a part of one."""
        root = f"/apis/{GROUPS[kind]}" if kind in GROUPS else "/api/v1"
        return "/".join([root, "namespaces", self.namespace, kind, *name])

    def ask(
        self, method: str, path: str, body: Any = None, *, absent: Collection[int] = (ABSENT,),
        patience_s: float | None = None, text: bool = False, **query: Any,
    ) -> Any:  # fmt: skip
        """The answer, as JSON has it or as `text`; None for a status of `absent`."""

        def answer() -> Any:
            data = self.send(method, path, body, query, ANSWER_S).data
            return data.decode(errors="replace") if text else json.loads(data)

        return self.tried(answer, absent, patience_s)

    def get(self, kind: str, name: str) -> dict | None:
        return self.ask("GET", self.place(kind, name))

    def items(self, kind: str, *, absent: Collection[int] = (ABSENT,), **query: Any) -> list[dict]:
        """The objects of a kind; none where `absent` has the status of a kind that is not known."""
        found = self.ask("GET", self.place(kind), absent=absent, **query)
        return found["items"] if found else []

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """The lines of a log, as they come."""
        from urllib3.exceptions import HTTPError

        answer = self.tried(lambda: self.send("GET", path, None, query, (ANSWER_S, None)), (), None)
        rest = b""
        try:
            for data in answer.stream():
                *whole, rest = (rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
        except HTTPError as error:
            raise Unreachable(f"the API server has broken off ({error})") from error
        if rest:
            yield rest.decode(errors="replace")

    def send(self, method: str, path: str, body: Any, query: dict[str, Any], answer_s: Any) -> Any:
        patch = "strategic-merge-patch" if path.startswith(OWN) else "merge-patch"
        kind = f"application/{patch}+json" if method == "PATCH" else "application/json"
        return self.client.call_api(
            path, method, query_params=list(query.items()), body=body, auth_settings=["BearerToken"],
            header_params={"Accept": "application/json, */*", "Content-Type": kind},
            _return_http_data_only=True, _preload_content=False, _request_timeout=answer_s,
        )  # fmt: skip

    def tried(self, work: Callable[[], Any], absent: Collection[int], patience_s: float | None) -> Any:
        """What a request returns, tried again while that may help; `Unreachable` when patience is over."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        began = time.monotonic()
        while True:
            try:
                answer = work()
            except ApiException as error:
                if error.status in absent:
                    return None
                if not self.may_pass(error.status):
                    raise Refused(error.status, self.advised(error.status, said(error))) from error
                why, failed = said(error), error
            except HTTPError as error:
                why, failed = f"{type(error).__name__}: {error}", error
            else:
                self.was_granted = True
                return answer
            if time.monotonic() - began >= (self.patience() if patience_s is None else patience_s):
                raise Unreachable(f"the API server does not answer ({why})") from failed
            time.sleep(PAUSE_S)

    def may_pass(self, status: int) -> bool:
        """Whether the same request may be answered later. The client gives a failed handshake the status 0."""
        return status in (0, BUSY) or status >= 500 or (status in DENIED and self.in_run and self.was_granted)

    def advised(self, status: int, why: str) -> str:
        """Admission and quotas deny with the status of a missing right, which alone is said as `cannot`."""
        lacks_right = self.in_run and status == FORBIDDEN and "cannot" in why
        return f"{why}; charts/relic-platform gives the accounts of a run their rights" if lacks_right else why


def connect() -> Any:
    """An `ApiClient` of the package kubernetes; in a pod, as its account."""
    try:
        from kubernetes import client, config
    except ModuleNotFoundError as error:
        raise UserError(f"Kubernetes needs {error.name}; install the extra: pip install 'relic[cluster]'") from error
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise UserError(f"there is no way to a cluster ({error}); set KUBECONFIG") from error
    return client.ApiClient()


def said(error: Any) -> str:
    """What the API server says in a refusal, an `ApiException`."""
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
