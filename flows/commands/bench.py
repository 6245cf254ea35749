"""tamis bench: how the tiers of a screen do on this machine."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.console import (
    DONE,
    USAGE,
    AllowCode,
    AsJson,
    Database,
    File,
    err,
    fail,
    out,
    print_json,
    print_rows,
    settings,
)

if TYPE_CHECKING:
    from db.benchmarks import Benchmark
    from tiers.planning.machine import Machine
    from tiers.planning.measure import Measured, Plan
    from tiers.screenfile.file import Screen

app = typer.Typer()


@app.command(epilog="Example: `tamis bench screen.yaml --tier fast --batch-sizes 1,8,32`")
def bench(
    file: File,
    tier: Annotated[str | None, typer.Option(help="Only this tier; default: all.")] = None,
    sample: Annotated[int, typer.Option(min=4, max=4096, help="So many candidates.")] = 64,
    batch_sizes: Annotated[str, typer.Option(help="Candidates handed over at once.")] = "1,8,32",
    concurrency: Annotated[
        str, typer.Option(help="Requests or replies under way; default: the screen file's.")
    ] = "",
    quantizations: Annotated[
        str, typer.Option(metavar="FILES", help="Other GGUF files, compared with the tier's own.")
    ] = "",
    report: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Keep a report of guidellm.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Show what was measured.")] = False,
    database: Database = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure tiers with the first candidates of a screen; decides and stores no judgement.

    The exit code is 2 if nothing could be measured.
    """
    from tiers.screenfile.file import load_screen

    definition = load_screen(file)
    names = [one.name for one in definition.tiers]
    if tier is not None and tier not in names:
        fail(f"{file} has no tier '{tier}'; it has {', '.join(names)}")
    if history:
        _show(_history(definition.screen, tier, database), as_json, rows=[], history=True)
        return
    chosen = [i for i, name in enumerate(names) if tier in (None, name)]
    rows: list[list[tuple[str, str]]] = []
    if report is not None:
        found = _imported(definition, names[chosen[0]], report)
    else:
        sizes, many = _numbers(batch_sizes, "--batch-sizes"), _numbers(concurrency, "--concurrency")
        files = [part.strip() for part in quantizations.split(",") if part.strip()]
        plans = _plans(definition, chosen, sample, sizes, many, files)
        found, rows = _measured(definition, plans)
    _keep(found, database)
    _show(found, as_json, rows=rows)
    raise typer.Exit(DONE if any(one.rate is not None for one in found) else USAGE)


def _numbers(text: str, option: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and 0 < int(part) <= 4096 for part in parts):
        fail(f"{option} is '{text}'; write whole numbers from 1 to 4,096, such as 1,8,32")
    if option == "--batch-sizes" and not parts:
        fail("--batch-sizes names none; write 1,8,32")
    return sorted({int(part) for part in parts})


def _plans(
    definition: "Screen",
    chosen: list[int],
    sample: int,
    sizes: list[int],
    many: list[int],
    files: list[str],
) -> list["Plan"]:
    """What will be measured, told before it begins."""
    from flows.files.ingest import first_texts
    from flows.settings import load_keys
    from tiers.planning.measure import plan_of
    from tiers.screenfile.tiers import RemoteTier
    from tiers.tier import job_of

    load_keys(one.key_name for one in definition.tiers if isinstance(one, RemoteTier))
    texts = first_texts(definition.candidates, sample)
    last = len(definition.tiers) - 1
    plans = [
        plan_of(
            job_of(definition, i), definition.policy(i), last=i == last, texts=texts,
            batch_sizes=sizes, concurrencies=many, files=files,
        )
        for i in chosen
    ]  # fmt: skip
    for plan in plans:
        err.print(_announced(plan))
    return plans


def _announced(plan: "Plan") -> str:
    from tiers.prices import price_of

    price, config = price_of(plan.job.config), plan.job.config
    characters = sum(len(text) for _, text in plan.texts) / len(plan.texts)
    each = (len(plan.job.rubric) + characters) / 3
    cost = "" if price is None else "; it costs nothing"
    if price is not None and price.hour:
        cost = f"; at {price.hour:g} USD an hour"
    elif price is not None and max(price[:3]):
        replies = getattr(config, "max_tokens", 1)
        most = plan.judgements * price.of(round(each), 0, replies)
        cost = f"; at most about {most:.4f} USD"
    elif price is None:
        cost = "; its price is not known"
    many = ", ".join(str(one) for one in plan.concurrencies if one is not None)
    return (
        f"tier {config.name}: {len(plan.texts)} candidates, handed over "
        f"{', '.join(map(str, plan.batch_sizes))} at once"
        + (f", {many} under way" if many else "")
        + (f", {len(plan.models)} models" if len(plan.models) > 1 else "")
        + f": {plan.judgements:,} answers"
        + (", or more for a second each" if plan.repeats else "")
        + cost
    )


def _measured(
    definition: "Screen", plans: Sequence["Plan"]
) -> tuple[list["Benchmark"], list[list[tuple[str, str]]]]:
    """The figures, and the rooflines of local tiers."""
    from tiers.planning.machine import look
    from tiers.planning.measure import measure

    folder = settings().data_folder
    machine = look(folder)
    found: list[Benchmark] = []
    rows: list[list[tuple[str, str]]] = []
    for plan in plans:
        of_tier = list(measure(plan))
        name = plan.job.config.name
        found += [_benchmark(one, machine, definition.screen, name) for one in of_tier]
        rows += _roofline(plan, of_tier, machine)
    return found, rows


def _roofline(
    plan: "Plan", found: list["Measured"], machine: "Machine"
) -> list[list[tuple[str, str]]]:
    from tiers.planning.roofline import ceilings_for, explain
    from tiers.screenfile.ask import JsonAsk
    from tiers.screenfile.tiers import LlamaTier

    config = plan.job.config
    best = next((one for one in found if one.suggested and one.rate and one.prefill_rate), None)
    if not isinstance(config, LlamaTier) or best is None:
        return []
    rate, writes = best.rate or 1.0, isinstance(config.ask, JsonAsk)
    ceilings = ceilings_for(plan.job, machine, settings().data_folder)
    return [
        explain(
            plan.job, ceilings, (best.prefill_rate or 0.0) / rate,
            written=(best.decode_rate or 0.0) / rate if writes else 0.0, measured=rate,
        )
    ]  # fmt: skip


def _benchmark(one: "Measured", machine: "Machine", screen: str, tier: str) -> "Benchmark":
    from db.benchmarks import Benchmark

    cards = "".join(f", {gpu.name}" for gpu in machine.gpus)
    named = f"{machine.processor}, {machine.cores:g} cores, {machine.memory / 1e9:.0f} GB{cards}"
    return Benchmark(machine=named, screen=screen, tier=tier, **asdict(one))


def _imported(definition: "Screen", tier: str, report: Path) -> list["Benchmark"]:
    from db.benchmarks import Benchmark
    from tiers.planning.guidellm import read_report

    return [
        Benchmark(
            machine=f"of {report.name}", screen=definition.screen, tier=tier, source="guidellm",
            **asdict(one),
        )
        for one in read_report(report)
    ]  # fmt: skip


def _history(screen: str, tier: str | None, database: str | None) -> list["Benchmark"]:
    from db.engine import check_ready
    from db.store import opened_store

    url = settings().database(database)
    check_ready(url, create=False)
    with opened_store(url) as store:
        return store.benchmarks.of_screen(screen, tier)


def _keep(found: list["Benchmark"], database: str | None) -> None:
    from db.engine import check_ready
    from db.store import opened_store

    url = settings().database(database)
    check_ready(url)
    with opened_store(url) as store:
        store.benchmarks.add(found)


def _show(
    found: Sequence["Benchmark"],
    as_json: bool,
    *,
    rows: list[list[tuple[str, str]]],
    history: bool = False,
) -> None:
    if as_json:
        print_json(
            {"benchmarks": [asdict(one) for one in found], "rooflines": [dict(one) for one in rows]}
        )
        return
    print_rows(_shown([_row(one, history) for one in found]), False, empty="nothing measured yet")
    if found and not history and all(one.gpu_memory is None for one in found):
        out.print("GPU: not measured: no card seen (pip install 'tamis[gpu]' for NVIDIA's)")
    for one in found:
        if one.problem:
            out.print(f"{one.tier}, {one.model}: not measured: {one.problem}", style="red")
    for roofline in rows:
        for name, words in roofline:
            out.print(f"{name:<20} {words}")
        out.print()
    if not history:
        for one in found:
            if one.suggested:
                out.print(_suggestion(one), style="green")


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the columns in which no row says anything."""
    return [
        {
            name: cell
            for name, cell in row.items()
            if any(one[name] not in ("-", "") for one in rows)
        }
        for row in rows
    ]


def _suggestion(one: "Benchmark") -> str:
    many = f", concurrency {one.concurrency}" if one.concurrency else ""
    size = f"blocks of {one.batch_size}" if one.batch_size else "as imported"
    return f"{one.tier}, {Path(one.model).name}: {size}{many} ({one.rate or 0:,.1f} candidates/s)"


def _row(one: "Benchmark", history: bool) -> dict[str, Any]:
    def told(value: float | None, form: str, factor: float = 1.0) -> str:
        return "-" if value is None else format(value * factor, form)

    row: dict[str, Any] = {}
    if history:
        row = {"measured": f"{one.measured_at:%Y-%m-%d %H:%M}", "machine": one.machine}
    return row | {
        "tier": one.tier,
        "model": Path(one.model).name,
        "at once": told(one.batch_size, ",.0f"),
        "under way": told(one.concurrency, ",.0f"),
        "/s": "not measured" if one.rate is None else f"{one.rate:,.1f}",
        "P50 ms": told(one.p50, ",.1f", 1000),
        "P95 ms": told(one.p95, ",.1f", 1000),
        "P99 ms": told(one.p99, ",.1f", 1000),
        "first ms": told(one.first_token, ",.1f", 1000),
        "read tok/s": told(one.prefill_rate, ",.0f"),
        "write tok/s": told(one.decode_rate, ",.0f"),
        "MB": told(one.peak_memory, ",.0f", 1e-6),
        "GPU MB": told(one.gpu_memory, ",.0f", 1e-6),
        "GPU busy": told(one.gpu_utilisation, ".0%"),
        "per dollar": told(one.per_dollar, ",.0f"),
        "agreement": told(one.agreement, ".1%"),
        "flips, near": "-" if one.flips is None else f"{one.flips} ({one.flips_near})",
        "": "suggested" if one.suggested else "",
    }
