"""The way to a Kubernetes API server: as the pod's account, or by KUBECONFIG. Needs the extra `cluster`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relic.mistakes import UserError

ANSWER_S = 15  # the longest wait for the API server
KUEUE = "/apis/kueue.x-k8s.io"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/{}/workflows"
TEMPLATES = "/apis/argoproj.io/v1alpha1/namespaces/{}/workflowtemplates"
JOBS = "/apis/kubeflow.org/v1/namespaces/{}/pytorchjobs"
PODS = "/api/v1/namespaces/{}/pods"


def connect() -> Any:
    """The API's client, an `ApiClient` of the package kubernetes; in a pod, as its account."""
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


def ask(api: Any, method: str, path: str, body: Any = None, **query: str) -> Any:
    """The API server's answer in plain values, as Kubernetes writes them; an `ApiException` where it refuses."""
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    return api.call_api(
        path, method, query_params=list(query.items()), body=body, response_type="object",
        header_params={"Accept": "application/json", "Content-Type": kind}, auth_settings=["BearerToken"],
        _return_http_data_only=True, _request_timeout=ANSWER_S,
    )  # fmt: skip


def look(api: Any, path: str, *, method: str = "GET", **query: str) -> Any:
    """As `ask`; None where there is nothing."""
    from kubernetes.client.exceptions import ApiException

    try:
        return ask(api, method, path, **query)
    except ApiException as error:
        if error.status == 404:
            return None
        raise


@contextmanager
def told(doing: str) -> Iterator[None]:
    """A refusal, or a server that does not answer, in one sentence."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status >= 500:
            raise OSError(f"{doing} failed: {said(error)}") from error
        raise UserError(f"{doing} is refused: {said(error)}") from error
    except HTTPError as error:
        raise OSError(f"{doing} failed, for the cluster does not answer: {error}") from error


def said(error: Any) -> str:
    """What the API server says in a refusal, an `ApiException`, in one sentence."""
    import json

    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
