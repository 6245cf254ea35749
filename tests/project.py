"""A folder with a screen, as a user has one, and the command that works on it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.run.screening import screen_candidates
from tests.forks import Forked, Forks
from tiers.policy import Policy
from tiers.screenfile.file import Screen

HERE = Path(__file__).parent
Process = subprocess.Popen[str] | Forked


class Project:
    """Runs `tamis` in a folder of its own, with its own database, on the session's Prefect server."""

    def __init__(self, folder: Path, prefect_url: str, forks: Forks | None = None) -> None:
        self._forks = forks
        self.folder = folder
        self.database = f"sqlite:///{folder}/tamis.db"
        self.env = {
            key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
        }
        self.env |= {
            "PREFECT_API_URL": prefect_url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PYTHONPATH": str(HERE.parent),
            "PYTHONWARNINGS": "default",
            "TAMIS_DATA_FOLDER": str(folder / "data"),
        }

    def write(self, *tiers: str, count: int = 500, name: str = "screen.yaml") -> None:
        write(self.folder, *tiers, count=count, name=name)

    def start(self, *arguments: str) -> Process:
        if self._forks is not None:
            return self._forks.start(arguments, self.folder, self.env)
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.folder, env=self.env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def tamis(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return process.wait(), out, err

    def run(self, *arguments: str, database: str | None = None) -> tuple[int, dict[str, Any], str]:
        code, out, err = self.tamis(
            "run", "screen.yaml", "--json", "--database", database or self.database, *arguments
        )
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    def results(self, run: str, database: str | None = None) -> dict[str, tuple[Any, ...]]:
        code, out, err = self.tamis(
            "results", run, "--format", "jsonl", "--database", database or self.database
        )
        assert code == 0, err
        rows = map(json.loads, out.splitlines())
        return {row.pop("key"): tuple(row.items()) for row in rows}


def write(folder: Path, *tiers: str, count: int = 500, name: str = "screen.yaml") -> None:
    """A screen with these tiers over so many candidates."""
    with (folder / "in.jsonl").open("w") as file:
        for i in range(count):
            file.write(json.dumps({"id": f"k{i:06}", "text": f"text number {i}"}) + "\n")
    lines = "\n".join(f"  - {each}" for each in tiers)
    (folder / name).write_text(
        f"screen: try\ncandidates: {{from: in.jsonl, key: id}}\nrubric: any\ntiers:\n{lines}\n"
    )


def lives(pid: int) -> bool:
    """Whether a process runs; one that is dead and waits for its reaper does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def screened(definition: Screen, key: str | None = None, **options: Any) -> str:
    """Screen in this process; the run's key."""
    return screen_candidates(definition, key=key, **options).key


def tier_by(
    name: str,
    reject_below: float | None = None,
    accept_above: float | None = None,
    top: float | None = None,
) -> tuple[str, Policy]:
    """A tier as a run begins it; its policy may set nothing."""
    return name, Policy.model_construct(
        reject_below=reject_below, accept_above=accept_above, top=top, budget=False
    )
