"""What a router counts, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from relic.serve.fleet import Fleet
from relic.serve.moving import Mover
from relic.serve.relay import Relay

TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of the exposition format


class Counts:
    """Read from the router's parts at the moment of the question, so a replica that has gone has no series left."""

    def __init__(self, fleet: Fleet, relay: Relay, mover: Mover):
        self.fleet, self.relay, self.mover = fleet, relay, mover
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        known = [one for one in self.fleet.replicas.values() if one.name]
        ready = [one for one in known if one.ready]
        yield GaugeMetricFamily("relic_router_replicas", "Servers that answer", len(known))
        yield GaugeMetricFamily("relic_router_replicas_ready", "Servers that take new walks", len(ready))
        sessions = GaugeMetricFamily("relic_router_sessions", "Walks of a server", labels=["replica", "address"])
        slots = GaugeMetricFamily("relic_router_slots", "Places of a server", labels=["replica", "address"])
        for one in known:
            sessions.add_metric([one.name, one.address], len(one.sessions))
            slots.add_metric([one.name, one.address], one.slots)
        yield from (sessions, slots)
        yield GaugeMetricFamily("relic_router_streams_open", "Streams that go through", self.relay.streams)
        yield CounterMetricFamily("relic_router_messages", "Messages passed on to callers", self.relay.messages)
        yield CounterMetricFamily("relic_router_moved", "Walks told to move to another server", self.mover.num_moved)
        refusals = CounterMetricFamily(
            "relic_router_refusals", "Requests and streams refused by the router itself", labels=["status", "reason"]
        )
        for labels, count in self.relay.refusals.items():
            refusals.add_metric(labels, count)
        yield refusals
