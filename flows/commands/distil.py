"""tamis distil and tamis export: what labels and answers teach."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import (
    INTERRUPTED,
    UNFINISHED,
    AllowCode,
    AsJson,
    Database,
    File,
    RunKey,
    err,
    fail,
    found_run,
    open_store,
    out,
    print_json,
    print_rows,
    settings,
    unwritable,
)

CODES = {"certified": 0, "waiting": 3, "paused": 3, "infeasible_budget": 4, "refused": 4}
app = typer.Typer()
export = typer.Typer(name="export", help="Files for other programs.")
app.add_typer(export)


@app.command(epilog="Example: `tamis distil screen.yaml --labels 200`")
def distil(
    file: File,
    labels: Annotated[int, typer.Option(min=0, help="To train on, of the teacher.")] = 200,
    teacher: Annotated[
        str | None, typer.Option("--from", help="A tier, or people; default: the last tier.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Of stored answers only those about this run's candidates.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Calibrate though labels are few, or nothing is saved.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="What past runs cost; nothing is trained.")
    ] = False,
    database: Database = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Train the screen's classifier, and admit it if the promise holds with it and costs less.

    Exit code 0: admitted. 3: labels or answers are awaited. 4: refused; runs go on without it.
    """
    from tiers.screenfile.file import load_screen
    from tiers.types import TierError

    definition = load_screen(file)
    os.environ["TAMIS_DATABASE_URL"] = settings().database(database)
    if history:
        from flows.report.costs import costs_of_runs

        print_rows(costs_of_runs(open_store(database), definition.screen), as_json, empty="no runs")
        return
    from flows.distil import distil as train_and_test

    try:
        made = train_and_test(
            definition, labels=labels, teacher=teacher, run_key=run, anyway=anyway
        )
    except TierError as error:
        fail(str(error), UNFINISHED)
    except KeyboardInterrupt:
        fail("stopped; what was judged is kept. Go on with the same command", INTERRUPTED)
    if as_json:
        print_json(made)
    else:
        word = "admitted" if made["status"] == "certified" else made["status"].replace("_", " ")
        out.print(f"run {made['run']}: {word}: {made['message']}")
    raise typer.Exit(CODES[made["status"]])


@export.command(
    "training-set", epilog="Example: `tamis export training-set monday --output t.jsonl`"
)
def training_set(
    run_key: RunKey = None,
    output: Annotated[Path, typer.Option(help="A file of JSON lines.")] = Path("train.jsonl"),
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Write what people and the last tier answered as chats, to fine-tune a model of your own.

    Each line has `split` (train, valid or test, 80:10:10) by a digest of its text.
    """
    from flows.files.training import write_training_set

    store, run = found_run(database, run_key)
    try:
        counts = write_training_set(store, run, output)
    except OSError as error:
        unwritable(output, error)
    if as_json:
        print_json(counts)
    else:
        told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        err.print(f"wrote {output}: {told}")
