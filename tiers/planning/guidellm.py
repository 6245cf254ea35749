"""The report of guidellm, which measures a server with requests of its own shape."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tiers.planning.measure import Measured
from tiers.types import TierError


def read_report(path: Path) -> list[Measured]:
    """One row for each benchmark of a report in JSON.

    Raises:
        TierError: it is no such report.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        found = list(_rows(report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TierError(
            f"'{path}' is no report of guidellm in JSON ({type(error).__name__}: {error}); write "
            "one with: guidellm benchmark ... --output-path report.json"
        ) from error
    if not found:
        raise TierError(f"'{path}' holds no benchmark; its list 'benchmarks' is empty")
    return found


def _rows(report: Mapping[str, Any]) -> Iterator[Measured]:
    for one in report["benchmarks"]:
        metrics = one["metrics"]

        def mean(name: str, metrics: Mapping[str, Any] = metrics) -> float | None:
            return _number(metrics.get(name), "mean")

        def at(percentile: str, metrics: Mapping[str, Any] = metrics) -> float | None:
            return _number(metrics["request_latency"], percentile)

        first, many = (
            _number(metrics.get("time_to_first_token_ms"), "p50"),
            mean("request_concurrency"),
        )
        yield Measured(
            _model_of(report, one),
            batch_size=None,
            concurrency=None if many is None else max(1, round(many)),
            candidates=int((metrics.get("request_totals") or {}).get("successful") or 0),
            rate=mean("requests_per_second"),
            p50=at("p50"),
            p95=at("p95"),
            p99=at("p99"),
            first_token=None if first is None else first / 1000,
            prefill_rate=mean("prompt_tokens_per_second"),
            decode_rate=mean("output_tokens_per_second"),
        )


def _number(metric: Mapping[str, Any] | None, name: str) -> float | None:
    """A figure of the requests that succeeded; a percentile stands in a table of its own."""
    row = (metric or {}).get("successful") or {}
    value = (row.get("percentiles") or {}).get(name, row.get(name))
    if value is None and name == "p50":
        value = row.get("median")
    return None if value is None else float(value)


def _model_of(report: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """The model's name stands elsewhere in each version."""
    for place in (one, report):
        for part in ("config", "args", "metadata", "worker"):
            facts = place.get(part)
            if isinstance(facts, dict):
                backend = facts.get("backend")
                inner = backend if isinstance(backend, dict) else {}
                if name := facts.get("model") or inner.get("model"):
                    return str(name)
    return "not told"
