"""The command line. Prefect and engines are imported inside commands, so that help is quick."""

import traceback
from importlib.metadata import version as installed
from typing import Annotated

import typer
from pydantic import ValidationError

from flows.commands import (
    batches,
    bench,
    changes,
    check,
    control,
    database,
    demo,
    distil,
    doctor,
    guarantee,
    labels,
    operate,
    plan,
    report,
    results,
    run,
)
from flows.commands.console import (
    BUSY,
    INTERRUPTED,
    USAGE,
    err,
    fail,
    out,
)

app = typer.Typer(
    name="tamis",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Screen hundreds of thousands of records against one rubric with a cascade of models.",
)


@app.callback(invoke_without_command=True)
def tamis(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True)
    ] = False,
) -> None:
    """Screen hundreds of thousands of records against one rubric with a cascade of models."""
    if version:
        out.print(f"tamis {installed('tamis')}")
        raise typer.Exit


# In the order of the help: what a newcomer needs first.
for group in (
    run,
    demo,
    check,
    doctor,
    plan,
    results,
    report,
    operate,
    control,
    changes,
    guarantee,
    distil,
    bench,
    database,
    batches,
    labels,
):
    app.add_typer(group.app)


def main() -> None:
    """Run the command; an expected fault is one message and an exit code, never a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - told in full
        code = _code_of(error)
        if code is None:
            err.print(traceback.format_exc())  # as text: what it quotes may be a candidate's
            raise SystemExit(1) from None
        fail(_words_of(error), code)


def _words_of(error: Exception) -> str:
    """What is wrong; of our own variables, each with what was written into it."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"TAMIS_{str(one['loc'][0]).upper()}={one['input']!r}: {one['msg']}"
        for one in error.errors()
    )


def _code_of(error: Exception) -> int | None:
    """The exit code of a fault that is expected; None for one of our own."""
    from db.errors import DatabaseError, RunHeld, StoreError, WrongUrl
    from flows.files.writing import WritingError
    from flows.server import ServerError
    from tiers.screenfile.faults import ScreenError
    from tiers.types import TierError

    if isinstance(error, ValidationError) and error.title == "Settings":
        return USAGE
    if isinstance(error, DatabaseError | RunHeld) and not isinstance(error, WrongUrl):
        return BUSY
    expected = ScreenError | ServerError | StoreError | TierError | WritingError
    return USAGE if isinstance(error, expected) else None


if __name__ == "__main__":
    main()
