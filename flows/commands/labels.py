"""Labels from people, one by one or in sheets: tamis label."""

import csv
import getpass
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from flows.commands.console import (
    AsJson,
    Database,
    RunKey,
    err,
    found_run,
    out,
    print_json,
    print_rows,
    unwritable,
)
from flows.files.writing import defused
from flows.terminal import visible

app = typer.Typer(name="label", help="Labels from people: one by one, or in sheets.")


class Order(StrEnum):
    """In which order people are asked."""

    RANDOM = "random"
    ACTIVE = "active"


OfRun = Annotated[str | None, typer.Option("--run", help="A run's key; default: newest.")]


@app.callback(invoke_without_command=True)
def label(
    context: typer.Context,
    run_key: OfRun = None,
    reviewer: Annotated[str | None, typer.Option(help="Your name; default: this user.")] = None,
    order: Annotated[
        Order, typer.Option(help="active: likely and uncertain ones, to train a classifier.")
    ] = Order.RANDOM,
    database: Database = None,
) -> None:
    """Without a command: ask for the labels that a calibration wants, one at a time."""
    if context.invoked_subcommand is not None:
        return
    from flows.guarantee.labelling import ask_in_turn

    store, run = found_run(database, run_key)
    name = reviewer or getpass.getuser()
    active = order is Order.ACTIVE
    told = ask_in_turn(store, run, name, _type_in, out.print, active=active)
    following = "tamis distil FILE" if active else "tamis calibrate FILE"
    out.print(f"{told:,} labels by {name}; go on with: {following}")


@app.command("export", epilog="Example: `tamis label export monday --output labels.csv`")
def export_labels(
    run_key: RunKey = None,
    output: Annotated[Path | None, typer.Option(help="A file; default: stdout.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="So many, though fewer may do in the end.")
    ] = None,
    labelled_by: Annotated[
        str | None, typer.Option(help="What this reviewer has labelled, for a second one.")
    ] = None,
    database: Database = None,
) -> None:
    """Write a sheet to hand out: key, text, rubric and an empty column `label`."""
    from flows.guarantee.labelling import labels_from, sheet

    store, run = found_run(database, run_key)
    rows = list(sheet(store, run, count=count, labelled_by=labelled_by))
    if output is None:
        _write_sheet(sys.stdout, rows)
    else:
        try:
            with output.open("w", newline="", encoding="utf-8") as stream:
                _write_sheet(stream, rows)
        except OSError as error:
            unwritable(output, error)
    err.print(f"{len(rows):,} candidates to label: yes, no or unknown in the last column")
    if labelled_by is None and (tier := labels_from(run)):
        err.print(
            f"the promise has its labels from tier '{tier}': those of people are kept to compare "
            "with, and count once the screen says against: people"
        )


@app.command("import", epilog="Example: `tamis label import labels.csv --reviewer ada`")
def import_labels(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sheet that was filled in.")],
    reviewer: Annotated[str, typer.Option(help="Who filled it in.")],
    run_key: OfRun = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Where the reviewer said otherwise before.")
    ] = False,
    database: Database = None,
) -> None:
    """Store the answers of a sheet."""
    from flows.guarantee.labelling import take_in

    store, run = found_run(database, run_key)
    told, empty = take_in(store, run, file, reviewer, replace=replace)
    left = f"; {empty:,} lines have no answer yet" if empty else ""
    out.print(f"{told:,} new labels by {reviewer}{left}")


@app.command("agreement", epilog="Example: `tamis label agreement monday --json`")
def label_agreement(
    run_key: RunKey = None, database: Database = None, as_json: AsJson = False
) -> None:
    """Show how far reviewers agree (Cohen's kappa), and whom they disagree about."""
    from flows.guarantee.labelling import agreement

    store, run = found_run(database, run_key)
    found = agreement(store, run)
    if as_json:
        print_json(found)
        return
    print_rows(
        [asdict(pair) for pair in found.pairs],
        False,
        empty="no two people have labelled the same candidate",
    )
    print_rows(_even(found.disputes), False, empty="no disputes")


def _write_sheet(stream: TextIO, rows: list[dict[str, str]]) -> None:
    from flows.guarantee.labelling import COLUMNS

    shown = visible if stream.isatty() else str
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([shown(defused(row[name])) for name in COLUMNS] for row in rows)


def _type_in(prompt: str) -> str:
    try:
        return input(f"{prompt} > ")
    except EOFError:
        return "q"


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with all columns of any of them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]
