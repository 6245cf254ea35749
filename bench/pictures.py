"""Pictures of the Prefect UI while a screen runs: python -m bench.pictures [FOLDER].

The demo's screen over 6,000 made-up applicants is served, started through its form's deployment and
looked at with a headless Chromium: the form, the run's page in mid-run, the funnel, the report. Then
it is calibrated on its own, and the report of `tamis report` is looked at; --report makes that alone.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.browser import browser
from demo.records import applicants

COUNT = 6_000
TAMIS = (sys.executable, "-m", "flows.cli")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--report", action="store_true", help="only the report of tamis report")
    chosen = parser.parse_args()
    pictures = chosen.folder
    pictures.mkdir(parents=True, exist_ok=True)
    if not chosen.report:
        prefect(pictures)
    with tempfile.TemporaryDirectory() as home:
        report(Path(home), pictures / "report.png")
    print(f"pictures in {pictures}")


def prefect(pictures: Path) -> None:
    """The Prefect UI before, in and after a run."""
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as address:
        api = f"{address}/api"
        (mine,) = asked(f"{api}/deployments/filter", {})
        start = {"parameters": {"key": "monday"}, "state": {"type": "SCHEDULED"}}
        with browser(height=1250) as page:
            page.open(f"{address}/v2/deployments/deployment/{mine['id']}/run")
            page.picture(pictures / "form.png")
            run = asked(f"{api}/deployments/{mine['id']}/create_flow_run", start)["id"]
            while artifacts_of(api, run, "progress") is None:
                time.sleep(0.5)
            time.sleep(10)
            page.open(f"{address}/v2/runs/flow-run/{run}")
            page.picture(pictures / "run.png")
            while asked(f"{api}/flow_runs/{run}")["state_type"] in (
                "SCHEDULED",
                "PENDING",
                "RUNNING",
            ):
                time.sleep(1)
            page.open(f"{address}/v2/runs/flow-run/{run}")
            page.picture(pictures / "ended.png")
            for kind, name in (("table", "funnel"), ("markdown", "report")):
                while (found := artifacts_of(api, run, kind)) is None:
                    time.sleep(0.5)
                page.open(f"{address}/v2/artifacts/artifact/{found}")
                page.picture(pictures / f"{name}.png")


def report(home: Path, picture: Path) -> None:
    """A pilot, a run with the thresholds of a calibration, and the upper part of its report."""
    folder = made(home)
    screen = folder / "screen.yaml"
    free = re.sub(r"^ +policy: {reject_below.*\n", "", screen.read_text(), flags=re.MULTILINE)
    promise = "{recall: 0.95, confidence: 0.9, against: large, labels: 1500, prevalence: 0.09}"
    priced = free.replace("    threads: 1", "    threads: 1\n    price: {hour: 0.8}")
    screen.write_text(f"{priced}guarantee: {promise}\n")
    environment = cleared() | {"TAMIS_RECORD": "false"}
    for command in ("calibrate", "run"):
        asked_for = [*TAMIS, command, "screen.yaml", "--key", "monday"]
        subprocess.run(asked_for, cwd=folder, env=environment, check=True)
    subprocess.run([*TAMIS, "report", "monday"], cwd=folder, env=environment, check=True)
    with browser() as page:
        page.look(1280, 1190)
        page.open((folder / "monday.html").as_uri())
        page.picture(picture)


def cleared() -> dict[str, str]:
    """The environment without settings of Prefect's and of ours."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT", "TAMIS"))
    }


def made(home: Path) -> Path:
    """A folder with the demo's screen over many applicants."""
    subprocess.run([*TAMIS, "init", "screen"], cwd=home, check=True, capture_output=True)
    folder = home / "screen"
    with (folder / "many.jsonl").open("w") as file:
        for one in applicants(COUNT, 1):
            row = {
                "applicant_id": one.applicant_id,
                "name": one.name,
                "title": one.title,
                "resume": one.resume,
            }
            file.write(json.dumps(row) + "\n")
    screen = folder / "screen.yaml"
    screen.write_text(screen.read_text().replace("applicants.csv", "many.jsonl"))
    return folder


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """The demo's screen, served; the address of the UI."""
    environment, folder = cleared(), made(home)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*TAMIS, "serve", "screen.yaml", "--port", str(port)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout or ():
            if line.startswith("serving"):
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def artifacts_of(api: str, run: str, kind: str) -> str | None:
    wanted = {"artifacts": {"type": {"any_": [kind]}, "flow_run_id": {"any_": [run]}}}
    found = asked(f"{api}/artifacts/filter", wanted)
    return str(found[0]["id"]) if found else None


def asked(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


if __name__ == "__main__":
    main()
