"""Traces: a span per HTTP request and one per stage, sent to an OpenTelemetry collector; or none at all.

Needs the packages of ``requirements/traces.txt``. Where to and how many is told by OpenTelemetry's own
environment variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from data.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

#: Tells the span how its request was answered.
Told = Callable[[int], None]


class Tracing(Protocol):
    """What the server tells about its work as it goes on."""

    def request(
        self, method: str, route: str, headers: Mapping[str, str], request_id: str
    ) -> AbstractContextManager[Told]:
        """A request, which continues the trace that its ``traceparent`` header names."""
        ...

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stage of the request that the current thread works for."""
        ...

    def close(self) -> None:
        """Send what was not sent yet."""
        ...


class NoTracing:
    """Tells nobody."""

    def request(
        self, method: str, route: str, headers: Mapping[str, str], request_id: str
    ) -> AbstractContextManager[Told]:
        """See :meth:`Tracing.request`."""
        return nullcontext(lambda status: None)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """See :meth:`Tracing.stage`."""
        return nullcontext()

    def close(self) -> None:
        """See :meth:`Tracing.close`."""


class OpenTelemetry:
    """Spans by OpenTelemetry's names of HTTP attributes, given to ``processor``."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind, StatusCode

        # what the environment names goes before this default
        resource = Resource.create({"service.name": "shopreel"}).merge(Resource.create())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("shopreel")
        self._extract, self._server, self._error = extract, SpanKind.SERVER, StatusCode.ERROR

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str], request_id: str) -> Iterator[Told]:
        """See :meth:`Tracing.request`."""
        attributes = {
            "http.request.method": method, "http.route": route, "shopreel.request_id": request_id,
        }  # fmt: skip
        span = self._tracer.start_as_current_span(
            f"{method} {route}", self._extract(dict(headers)), kind=self._server, attributes=attributes
        )
        with span as current:

            def told(status: int) -> None:
                current.set_attribute("http.response.status_code", status)
                if status >= 500:
                    current.set_status(self._error)

            yield told

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See :meth:`Tracing.stage`."""
        with self._tracer.start_as_current_span(name):
            yield

    def close(self) -> None:
        """See :meth:`Tracing.close`."""
        self._provider.shutdown()


def otlp_tracing() -> Tracing:
    """Spans in batches over OTLP/HTTP. Raises :class:`ConfigError` where the packages are missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"traces=otlp needs {error.name}: pip install -r requirements/traces.txt, or traces=none"
        ) from None
    return OpenTelemetry(BatchSpanProcessor(OTLPSpanExporter()))
