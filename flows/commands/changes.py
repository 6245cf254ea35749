"""What is otherwise in one run than in another: whom it accepts, who came, who went."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.console import AsJson, Database, open_store, out, print_json, print_rows

if TYPE_CHECKING:
    from db.store import Difference, Run, Store

app = typer.Typer()


SHOWN = 20
ACCEPTED = "accepted"


@app.command(epilog="Example: `tamis changes monday tuesday`")
def changes(
    before: Annotated[
        str | None,
        typer.Argument(metavar="[BEFORE]", help="Default: the run before AFTER of its screen."),
    ] = None,
    after: Annotated[str | None, typer.Argument(metavar="[AFTER]", help="Default: newest.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed from one run to a later one: newly accepted, new, gone, changed text."""
    store = open_store(database)
    later = store.runs.find(after)
    earlier = store.runs.before(later) if before is None else store.runs.find(before)
    found = changes_between(store, earlier, later)
    if as_json:
        print_json(found)
        return
    out.print(f"from run {earlier.key} to run {later.key}:")
    counts = [
        {"what": name.replace("_", " "), "candidates": count}
        for name, count in found["counts"].items()
    ]
    print_rows(counts, False, empty="")
    print_rows(list(islice(found["candidates"], SHOWN)), False, empty="nothing changed")
    if len(found["candidates"]) > SHOWN:
        out.print(f"{len(found['candidates']) - SHOWN:,} more with --json")


def changes_between(store: Store, before: Run, after: Run) -> dict[str, Any]:
    """Counts, and every candidate that the runs do not agree about."""
    found = list(store.results.differences(before.id, after.id))
    return {
        "before": before.key,
        "after": after.key,
        "counts": {
            "newly_accepted": sum(map(_newly_accepted, found)),
            "no_longer_accepted": sum(map(_no_longer_accepted, found)),
            "new_candidates": sum(one.text == "new" for one in found),
            "gone": sum(one.text == "gone" for one in found),
            "changed_text": sum(one.text == "changed" for one in found),
            "other_verdict": sum(one.was != one.is_now for one in found),
        },
        "candidates": [one._asdict() for one in found],
    }


def _newly_accepted(one: Difference) -> bool:
    return one.is_now == ACCEPTED != one.was


def _no_longer_accepted(one: Difference) -> bool:
    return one.was == ACCEPTED != one.is_now
