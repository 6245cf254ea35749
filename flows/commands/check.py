"""tamis check: what a screen would ask, before it asks."""

import typer

from flows.commands.console import DONE, USAGE, AllowCode, AsJson, File, out, print_json

app = typer.Typer()


@app.command(epilog="Example: `tamis check screen.yaml`")
def check(file: File, allow_code: AllowCode = False, as_json: AsJson = False) -> None:
    """Validate a screen file; show the models found and the prompt of the first candidate."""
    from flows.report.inspection import inspect_screen, show_inspection
    from tiers.screenfile.file import load_screen

    inspection = inspect_screen(load_screen(file))
    if as_json:
        print_json(inspection)
    else:
        show_inspection(inspection, out)
    raise typer.Exit(USAGE if inspection.problems else DONE)
