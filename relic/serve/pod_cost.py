"""Tells a cluster which pods have the fewest walks, so that those go first when it takes some away.

Kubernetes reads the annotation controller.kubernetes.io/pod-deletion-cost of a ReplicaSet's pods: the lower it is, the
sooner the pod is deleted. It asks not to be told too often, so a pod's is written at most every 30 s.
"""

import asyncio
import logging
import os
import ssl
import time
from pathlib import Path

import httpx

from relic.serve.fleet import Fleet

logger = logging.getLogger("relic.serve.router")

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of the pod: token, ca.crt, namespace
HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"  # the variables with the API server's address
EVERY_S = 30.0  # of one pod
LOOK_S = 1.0
ANSWER_S = 10.0


class PodCosts:
    """Needs an account that may patch pods, and replicas whose names are their pods'."""

    def __init__(self, account: Path = ACCOUNT, transport: httpx.AsyncBaseTransport | None = None):
        host = os.environ.get(HOST, "")
        if not host or not (account / "token").is_file():
            raise ValueError("deletion_cost is given outside of a cluster's pod; it works inside of one only")
        self.account = account
        verify = ssl.create_default_context(cafile=account / "ca.crt")
        host = f"[{host}]" if ":" in host else host
        self.http = httpx.AsyncClient(
            base_url=f"https://{host}:{os.environ[PORT]}", verify=verify, transport=transport, trust_env=False,
            timeout=ANSWER_S,
        )  # fmt: skip
        self.namespace = (account / "namespace").read_text().strip()
        self.written: dict[str, tuple[int, float]] = {}  # by pod: the cost, and when

    async def run(self, fleet: Fleet) -> None:
        """Writes what has changed, until cancelled."""
        async with self.http:
            while True:
                await self.write({one.name: len(one.sessions) for one in fleet.replicas.values() if one.name})
                await asyncio.sleep(LOOK_S)

    async def write(self, costs: dict[str, int]) -> None:
        """The costs by pod, as far as they are new and not too often."""
        now = time.monotonic()
        self.written = {pod: last for pod, last in self.written.items() if pod in costs}
        for pod, cost in costs.items():
            before, at = self.written.get(pod, (0, -EVERY_S))  # a pod without the annotation counts as 0
            if cost == before or now - at < EVERY_S:
                continue
            self.written[pod] = (before, now)
            try:
                answer = await self.http.patch(
                    f"/api/v1/namespaces/{self.namespace}/pods/{pod}",
                    json={"metadata": {"annotations": {ANNOTATION: str(cost)}}},
                    headers={
                        "content-type": "application/merge-patch+json",
                        "authorization": f"Bearer {(self.account / 'token').read_text().strip()}",  # it is renewed
                    },
                )
                if answer.is_success:
                    self.written[pod] = (cost, now)
                else:
                    logger.warning("the cost of pod %s is answered by %d", pod, answer.status_code)
            except httpx.HTTPError as error:  # the router goes on without, and tries again later
                logger.warning("the cost of pod %s cannot be written: %s", pod, type(error).__name__)
