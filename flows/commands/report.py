"""tamis report: a run, or two, as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import AsJson, Database, fail, out, print_json, settings, unwritable

app = typer.Typer()


@app.command(epilog="Example: `tamis report monday --output monday.html`")
def report(
    run_key: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's key; default: newest.")
    ] = None,
    other: Annotated[
        str | None, typer.Argument(metavar="[LATER]", help="A later run to compare it with.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The file; default: RUN.html.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file with the numbers and pictures of a run; it needs no network.

    It holds counts and means, and no candidates but the twenty that tiers disagree about most.
    """
    from db.engine import check_ready, read_only_engine
    from db.store import Store
    from flows.report.html import comparison
    from flows.report.html import report as page_of

    url = settings().database(database)
    check_ready(url, create=False)
    engine = read_only_engine(url, lean=True)
    try:
        store = Store(engine)
        runs = [store.runs.find(key) for key in (run_key, *([other] if other else []))]
        page = page_of(store, runs[0]) if other is None else comparison(store, *runs)
    finally:
        engine.dispose()
    path = output or Path("-".join(run.key.replace("/", "_") for run in runs) + ".html")
    if path.suffix not in (".html", ".htm"):
        fail(f"{path} is no .html file; write --output {path.stem}.html")
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        unwritable(path, error)
    size = len(page.encode())
    if as_json:
        print_json({"runs": [run.key for run in runs], "file": str(path), "bytes": size})
    else:
        out.print(f"{path}: {size / 1e6:.2f} MB; open it in a browser")
