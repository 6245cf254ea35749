"""What goes on beside the command line: tamis ui."""

from typing import Annotated

import typer

from flows.commands.console import settings

app = typer.Typer()


@app.command(epilog="Example: `tamis ui`, then open the address that it prints")
def ui(port: Annotated[int, typer.Option(help="Where to listen.")] = 4200) -> None:
    """Open the Prefect UI on this project's runs, until Ctrl-C."""
    from flows.server import serve_ui

    serve_ui(settings(), port)
