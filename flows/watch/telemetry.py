"""OpenTelemetry: a span for each run, tier and block, never for a candidate. Off by default.

It is on where one of OpenTelemetry's own variables asks for it; else nothing of it is imported.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SECONDS = 3.0
"""How long the end of a process waits for a collector that does not answer."""


class _Telemetry(NamedTuple):
    """What spans and counts are made with; None where nobody asks for them."""

    tracer: Any
    judged: Any
    seconds: Any


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[dict[str, str | int | float]]:
    """A stretch of work. What is put into the dictionary meanwhile is told with its end."""
    more: dict[str, str | int | float] = {}
    telemetry = _telemetry() if _asked("TRACES") else None
    if telemetry is None or telemetry.tracer is None:
        yield more
        return
    # What an exception says may hold a candidate's words: its kind is told alone.
    quiet = {"record_exception": False, "set_status_on_exception": False}
    named = _named(attributes)
    with telemetry.tracer.start_as_current_span(name, attributes=named, **quiet) as current:
        try:
            yield more
        except BaseException as error:
            more["error"] = type(error).__name__
            raise
        finally:
            current.set_attributes(_named(more))


def count(screen: str, tier: str, judged: int, seconds: float) -> None:
    """A block was judged."""
    telemetry = _telemetry() if _asked("METRICS") else None
    if telemetry is not None and telemetry.judged is not None:
        whose = _named({"screen": screen, "tier": tier})
        telemetry.judged.add(judged, whose)
        telemetry.seconds.record(seconds, whose)


def _named(attributes: dict[str, str | int | float]) -> dict[str, str | int | float]:
    return {f"tamis.{name}": value for name, value in attributes.items()}


def _asked(signal: str) -> bool:
    """Whether the environment asks for traces, or for metrics."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get(f"OTEL_{signal}_EXPORTER", "")
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return exporter != "none" and bool(exporter or own or os.environ.get(_ENDPOINT))


@cache
def _telemetry() -> _Telemetry | None:
    """Set up once, at the first span."""
    try:
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        print(  # noqa: T201
            "OpenTelemetry is asked for by the environment and is not installed; run: "
            "pip install 'tamis[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
            file=sys.stderr,
        )
        return None
    return _Telemetry(_tracer() if _asked("TRACES") else None, *_meters())


def _tracer() -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SpanExporter,
    )

    exporter: SpanExporter
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        exporter = ConsoleSpanExporter(out=sys.stderr)
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _at_exit(provider)
    return provider.get_tracer("tamis")


def _meters() -> tuple[Any, Any]:
    if not _asked("METRICS"):
        return None, None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        MetricExporter,
        PeriodicExportingMetricReader,
    )

    exporter: MetricExporter
    if os.environ.get("OTEL_METRICS_EXPORTER") == "console":
        exporter = ConsoleMetricExporter(out=sys.stderr)
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        exporter = OTLPMetricExporter()
    reader = PeriodicExportingMetricReader(exporter)
    provider = MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)
    _at_exit(provider)
    meter = provider.get_meter("tamis")
    return (
        meter.create_counter("tamis.judged", "1", "Texts judged"),
        meter.create_histogram("tamis.block.seconds", "s", "Time of a block"),
    )


def _resource() -> Any:
    from opentelemetry.sdk.resources import Resource

    name = os.environ.get("OTEL_SERVICE_NAME", "tamis")
    return Resource.create({"service.name": name})


def _at_exit(provider: Any) -> None:
    """Send what is left, and wait no longer than some seconds for it."""
    import atexit

    def end() -> None:
        with suppress(Exception):
            provider.shutdown()

    def wait() -> None:
        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(SECONDS)

    atexit.register(wait)
