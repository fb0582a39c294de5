"""What the server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from temporal_vae.serve.desk import Desk

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Counters:
    """Counters of one server; those of others in the process are theirs.

    Args:
        desk: whose places and work are shown.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, desk: Desk) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        own: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "temporal_vae_requests", "Requests that were answered.", ("route", "status"), **own
        )
        self.seconds = Histogram(
            "temporal_vae_request_seconds",
            "Time until a request was answered.",
            ("route",),
            buckets=_SECONDS,
            **own,
        )
        self.jobs = Counter("temporal_vae_jobs", "Jobs that ended, by how they did.", ("state",), **own)
        for name, about, value in (
            ("places_taken", "Requests in hand.", lambda: desk.taken),
            ("held_bytes", "What their tensors take.", lambda: desk.held),
            ("multiply_adds_per_second", "What the model does, of late.", lambda: desk.speed),
        ):
            Gauge(f"temporal_vae_{name}", about, **own).set_function(value)

    def count_job(self, state: str) -> None:
        """A job ended in this state."""
        self.jobs.labels(state).inc()

    def text(self) -> bytes:
        """In the format of Prometheus."""
        return generate_latest(self._registry)
