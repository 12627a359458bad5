"""What the service says of itself: its log with request ids, and its Prometheus metrics."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Telemetry:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "letta_gym_requests",
            "Requests that were answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "letta_gym_request_seconds",
            "Seconds until a request was answered",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.under_way = Gauge(
            "letta_gym_requests_under_way", "Requests under way", registry=self.registry
        )
        self.selections = Counter(
            "letta_gym_selections",
            "Choices of skills",
            ("policy",),
            registry=self.registry,
        )
        self.outcomes = Counter(
            "letta_gym_outcomes",
            "Outcomes that were recorded",
            ("evidence",),
            registry=self.registry,
        )
        self.batch = Histogram(
            "letta_gym_log_batch_decisions",
            "Decisions that were written in one transaction",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        # Finding a child by its labels takes as long as counting ten times.
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._chosen: dict[str, Counter] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        key = method, route, status
        known = self._answered.get(key)
        if known is None:
            known = self.requests.labels(*key), self.seconds.labels(route)
            self._answered[key] = known
        known[0].inc()
        known[1].observe(seconds)

    def chosen_by(self, policy: str) -> None:
        """Count a choice of the policy with this digest."""
        known = self._chosen.get(policy)
        if known is None:
            known = self._chosen[policy] = self.selections.labels(policy)
        known.inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _RequestIds(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = REQUEST_ID.get()
        return True


def configure_logging(level: str) -> None:
    """Log to standard error, one line an event, each with the id of its request."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s")
    )
    handler.addFilter(_RequestIds())
    root = logging.getLogger("letta_gym")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
