"""tamis run, and tamis init, which writes something to run."""

import csv
import shlex
from importlib.resources import files
from pathlib import Path
from shutil import copytree
from typing import Annotated

import typer

from flows.commands.console import (
    AllowCode,
    AllowShrink,
    AsJson,
    Database,
    File,
    LogFormat,
    MetricsPort,
    fail,
    metrics,
    out,
    print_json,
    same_database,
)
from flows.commands.local import exit_code, screen_once

app = typer.Typer()


@app.command(epilog="Example: `tamis run screen.yaml --key monday`")
def run(
    file: File,
    database: Database = None,
    key: Annotated[str | None, typer.Option(help="Name of the run; the same key goes on.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I of N, as a run of its own: 2/8."),
    ] = None,
    allow_shrink: AllowShrink = False,
    allow_code: AllowCode = False,
    metrics_port: MetricsPort = None,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Screen all candidates. Run again after a stop of any kind: it goes on where it was.

    Exit code 0: done. 3: candidates failed or pending. 4: audits say that the promise is broken.
    """
    from flows.report.summary import show
    from tiers.screenfile.file import load_screen

    definition = load_screen(file)
    if shard is not None:
        from flows.run.screening import of_shard

        if key is None:
            fail("a shard needs the name that all shards share; write --key monday --shard 2/8")
        definition, key = of_shard(definition, shard, key)
    with metrics(database, metrics_port):
        finished = screen_once(
            definition, database, key=key, limit=limit, allow_shrink=allow_shrink
        )
    if as_json:
        print_json(finished.as_json())
    else:
        show(finished, out)
        _next_steps(finished.run, same_database(database))
    raise typer.Exit(exit_code(finished))


@app.command(epilog="Example: `tamis init my-screen`")
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if missing.")] = Path(),
) -> None:
    """Write a commented screen file and sample data to start from."""
    from demo.records import applicants

    if folder.is_file():
        fail(
            f"{folder} is a file; name a folder, such as tamis init my-screen, and write "
            f"{folder.name} after from: in its screen.yaml"
        )
    target, data, models = folder / "screen.yaml", folder / "applicants.csv", folder / "models"
    for path in (target, data, models):
        if path.exists():
            fail(f"{path} exists already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(str(files("demo")))
    screen = (package / "screen.yaml").read_text("utf-8")
    target.write_text(screen.replace("data/applicants.jsonl", data.name), "utf-8")
    copytree(package / "models", models)  # so that the folder is whole wherever it is taken
    with data.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["applicant_id", "name", "title", "resume"])
        for one in applicants(200, 1):
            writer.writerow([one.applicant_id, one.name, one.title, one.resume])
    out.print(
        f"wrote {target}, {data} and {models}\nnext: tamis check {target}; then tamis run {target}"
    )


def _next_steps(key: str, same: str) -> None:
    key = shlex.quote(key)
    asks = (f"tamis results {key} --verdict accepted{same}", f"tamis explain {key} KEY{same}")
    out.print(f"see: {'; '.join(asks)}; tamis ui")
