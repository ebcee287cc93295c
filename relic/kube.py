"""The way to a Kubernetes API server: as the pod's account, or by KUBECONFIG. Needs the extra `cluster`."""

from typing import Any

from relic.mistakes import UserError


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


def said(error: Any) -> str:
    """What the API server says in a refusal, an `ApiException`, in one sentence."""
    import json

    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
