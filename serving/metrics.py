"""What the server tells Prometheus. One instance per application, so that tests never share counts."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serving.tracing import NoTracing, Tracing

#: Set where several processes serve: there they share their metrics; prometheus_client reads it at import.
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (.0005, .001, .002, .004, .008, .016, .032, .064, .1, .2, .4, .8, 1.6, 3.2)  # fmt: skip
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms, all under ``shopreel_``; times in seconds. ``tracing`` hears of stages too."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.tracing: Tracing = tracing or NoTracing()
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=_SECONDS)
        self.requests = counter("shopreel_requests", "HTTP requests", ["route", "status"])
        self.request_seconds = seconds("shopreel_request_seconds", "Time to answer", ["route"])
        self.stage_seconds = seconds("shopreel_stage_seconds", "Time in a stage of a request", ["stage"])
        self.degraded = counter("shopreel_degraded", "Answers that lack something", ["reason"])
        self.shed = counter("shopreel_shed", "Requests turned away", ["reason"])
        self.slots = counter("shopreel_slots", "Videos handed out", ["source"])
        self.empty_pages = counter("shopreel_empty_pages", "Pages without a video: all were shown")
        self.events = counter("shopreel_events", "Events taken in", ["kind"])
        self.duplicates = counter("shopreel_duplicate_events", "Events that were taken in before")
        self.plans = counter("shopreel_plans", "Plans taken into force, or refused", ["result"])
        self.arms = counter("shopreel_arms", "Pages by experiment and arm", ["experiment", "arm"])
        self.campaign_slots = counter("shopreel_campaign_slots", "Slots given to campaigns", ["campaign"])
        self.shadow = counter("shopreel_shadow", "Requests that the shadow scored or not", ["result"])
        self.shadow_overlap = Histogram(
            "shopreel_shadow_overlap", "Share of a page that the shadow would have shown too",
            buckets=[place / 10 for place in range(11)], registry=registry,
        )  # fmt: skip
        self.log_rows = counter("shopreel_log_rows", "Log rows written as Parquet")
        self.log_failures = counter("shopreel_log_failures", "Failed attempts to write Parquet")
        self.batch_size = Histogram(
            "shopreel_batch_size", "Requests ranked together", buckets=_SIZES, registry=registry
        )
        self.in_flight = gauge("shopreel_in_flight", "Requests being worked on", multiprocess_mode="livesum")
        self.bundle = gauge(
            "shopreel_bundle", "Workers that serve the bundle", ["bundle"], multiprocess_mode="livesum"
        )
        self.swaps = counter("shopreel_bundle_swaps", "Bundles taken into service, or refused", ["result"])

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as one stage."""
        start = time.perf_counter()
        try:
            with self.tracing.stage(name):
                yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - start)

    def serving(self, bundle: str, instead_of: str | None) -> None:
        """Record that ``bundle`` is served from now on, in the place of another."""
        if instead_of is not None:
            self.bundle.labels(instead_of).set(0)  # where several processes share metrics, labels stay
            self.bundle.remove(instead_of)
        self.bundle.labels(bundle).set(1)

    def text(self) -> bytes:
        """The exposition format; where several processes serve, the sum over all of them."""
        if METRICS_DIRECTORY not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
