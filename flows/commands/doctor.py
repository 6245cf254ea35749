"""tamis doctor: what this machine has, and what a screen still lacks to run on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.console import (
    DONE,
    USAGE,
    AllowCode,
    AsJson,
    Database,
    out,
    print_json,
    print_rows,
    settings,
)

if TYPE_CHECKING:
    from flows.report.readiness import Readiness
    from tiers.planning.fit import Fit

app = typer.Typer()

Screen = Annotated[Path | None, typer.Argument(metavar="FILE", help="A screen file.")]


@app.command(epilog="Example: `tamis doctor screen.yaml`")
def doctor(
    file: Screen = None,
    database: Database = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Show what this machine has, which models fit, and what a screen lacks; loads no model.

    The exit code is 0 if the screen could run, and 2 if something is missing.
    """
    from flows.report.readiness import readiness
    from tiers.screenfile.file import load_screen

    definition = None if file is None else load_screen(file)
    found = readiness(settings(), settings().database(database), definition)
    if as_json:
        print_json(_as_dict(found))
    else:
        _show(found, screen=definition is not None)
    raise typer.Exit(USAGE if found.missing else DONE)


def _as_dict(found: "Readiness") -> dict[str, Any]:
    machine = found.machine
    return {
        "machine": machine._asdict()
        | {"gpus": [gpu._asdict() for gpu in machine.gpus], "llama": machine.llama._asdict()},
        "answers": found.answers,
        "models": [
            {
                "tier": one.tier,
                "model": one.model,
                "quantization": one.quantization,
                **one.need._asdict(),
                "total": one.need.total,
                "room": one.room,
                "where": one.where,
                "fits": one.fits,
                "chosen": one.chosen,
                "best": one.best,
            }
            for one in found.models
        ],
        "missing": found.missing,
        "notes": found.notes,
    }


def _show(found: "Readiness", *, screen: bool) -> None:
    from flows.report.readiness import gigabytes

    machine = found.machine
    of_host = f" of {machine.host_cores}" if machine.cores < machine.host_cores else ""
    facts = {
        "processor": f"{machine.processor}, {machine.cores:g}{of_host} cores"
        + (f", {' '.join(machine.features)}" if machine.features else ""),
        "memory": f"{gigabytes(machine.memory)}, {gigabytes(machine.free_memory)} free",
        "disk": f"{gigabytes(machine.disk)} free in the data folder",
        "GPU": "; ".join(
            f"{gpu.name}, {gigabytes(gpu.memory)}, {gigabytes(gpu.free)} free"
            for gpu in machine.gpus
        )
        or "none seen",
        "llama.cpp": machine.llama.problem
        or f"{'with' if machine.llama.gpu else 'without'} GPU support, built for "
        f"{' '.join(machine.llama.features)}",
    }
    wide = max(map(len, facts | found.answers))
    for name, words in (facts | found.answers).items():
        out.print(f"{name:<{wide}}  {words}")
    out.print()
    print_rows([_row(one) for one in found.models], False, empty="no tier runs llama.cpp here")
    for note in found.notes:
        out.print(f"note: {note}")
    for missing in found.missing:
        out.print(f"missing: {missing}", style="red")
    if not found.missing:
        out.print("the screen could run" if screen else "nothing is missing", style="green")


def _row(one: "Fit") -> dict[str, Any]:
    from flows.report.readiness import gigabytes

    words = [
        "fits" if one.fits else "too large",
        *(["in the screen file"] if one.chosen else []),
        *(["best choice"] if one.best else []),
    ]
    return {
        "tier": one.tier,
        "model": one.model,
        "quantization": one.quantization,
        "weights": gigabytes(one.need.weights),
        "cache": gigabytes(one.need.cache),
        "compute": gigabytes(one.need.compute),
        "needed": gigabytes(one.need.total),
        "free": f"{gigabytes(one.room)} {one.where}",
        "": ", ".join(words),
    }
