"""`tamis demo`: the embedded default, an ordinary screen whose truth happens to be known."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.console import Database, open_store, out, settings
from flows.commands.local import screen_once

if TYPE_CHECKING:
    from rich.console import Console

    from tiers.screenfile.file import Screen

app = typer.Typer()

Truth = Mapping[str, bool]
_COSTS = """
    SELECT tier, COUNT(*) AS calls, SUM(seconds) AS seconds
    FROM judgement_detail WHERE run = '{run}' GROUP BY position, tier ORDER BY position
"""


@dataclass(frozen=True)
class Quality:
    """How the verdicts of a run agree with the truth."""

    recall: float
    precision: float
    wrong: int


@app.command(epilog="Example: `tamis demo --count 2000`")
def demo(
    database: Database = None,
    count: Annotated[int, typer.Option(min=1, help="How many applicants.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Another seed, other applicants.")] = 7,
) -> None:
    """Screen generated applicants through three tiny models that ship with Tamis."""
    raise typer.Exit(run_demo(database, count=count, seed=seed, console=out))


def run_demo(database: str | None, *, count: int, seed: int, console: "Console") -> int:
    """Screen the applicants with the cascade, then all of them with its largest model alone.

    Returns:
        The exit code: 0 if every applicant has a verdict.
    """
    from flows.report.summary import show
    from tiers.screenfile.file import load_screen

    folder = Path(str(files("demo")))
    truth = _write_applicants(folder / "data" / "applicants.jsonl", count, seed)
    cascade = load_screen(folder / "screen.yaml")
    console.print(f"{count:,} made-up applicants, {sum(truth.values()):,} of whom fit the role:")
    console.print(f"  {cascade.rubric.strip()}\n", style="italic")
    finished = screen_once(cascade, database, allow_shrink=True)
    show(finished, console)
    console.print("\nfor comparison, the largest model on all of them:")
    alone = screen_once(largest_alone(cascade), database, allow_shrink=True)
    runs = {"cascade": finished.run, "largest model on all": alone.run}
    _show_comparison(database, runs, truth, console)
    key = finished.run
    console.print(
        f"\nLook further:\n"
        f"  tamis results {key} --verdict accepted\n"
        f"  tamis explain {key} {min(truth)}\n"
        f"  tamis sql \"SELECT key, score, reading FROM result WHERE run = '{key}' "
        "AND verdict = 'accepted' ORDER BY score DESC LIMIT 5\"\n"
        "  tamis ui                      the runs in the Prefect UI\n"
        "  tamis init my-screen          a screen file of your own",
    )
    return 0 if finished.pending == finished.failed == 0 else 3


def largest_alone(cascade: "Screen") -> "Screen":
    """The screen that asks the cascade's last tier about everybody."""
    return cascade.model_copy(
        update={"screen": f"{cascade.screen}-largest", "tiers": cascade.tiers[-1:]}
    )


def _write_applicants(path: Path, count: int, seed: int) -> Truth:
    from demo.records import applicants, write_jsonl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as output:
        write_jsonl(applicants(count, seed), output)
    return {one.applicant_id: one.truth for one in applicants(count, seed)}


def quality(results: Mapping[str, str], truth: Truth) -> Quality:
    """Recall and precision of the accepted; whoever has no verdict counts as not accepted."""
    accepted = {key for key, verdict in results.items() if verdict == "accepted"}
    fitting = {key for key, fits in truth.items() if fits}
    right = len(accepted & fitting)
    return Quality(
        recall=right / max(len(fitting), 1),
        precision=right / max(len(accepted), 1),
        wrong=len(accepted ^ fitting),
    )


def _show_comparison(
    database: str | None, runs: Mapping[str, str], truth: Truth, console: "Console"
) -> None:
    from rich.table import Table

    from db.query import ask

    store = open_store(database)
    table = Table(title="against the truth", title_justify="left")
    for name in ("", "recall", "precision", "wrong verdicts", "calls of it", "model seconds"):
        table.add_column(name, justify="left" if not name else "right")
    for name, key in runs.items():
        run = store.runs.find(key)
        results = {row["key"]: row["verdict"] for row in store.results.all(run.id)}
        found = quality(results, truth)
        costs = ask(settings().database(database), _COSTS.format(run=key))
        table.add_row(
            name,
            f"{found.recall:.1%}",
            f"{found.precision:.1%}",
            f"{found.wrong:,} of {len(truth):,}",
            f"{costs[-1]['calls']:,}",
            f"{sum(cost['seconds'] for cost in costs):,.1f}",
        )
    console.print(table)
