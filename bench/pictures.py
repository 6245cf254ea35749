"""Pictures of the Prefect UI while a screen runs: python -m bench.pictures [FOLDER].

The demo's screen over 6,000 made-up applicants is served, started through its form's deployment and
looked at with a headless Chromium: the form, the run's page in mid-run, the funnel, the report.
"""

import argparse
import json
import os
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/pictures"))
    pictures = parser.parse_args().folder
    pictures.mkdir(parents=True, exist_ok=True)
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
    print(f"pictures in {pictures}")


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """The demo's screen, served; the address of the UI."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT", "TAMIS"))
    }
    tamis = [sys.executable, "-m", "flows.cli"]
    subprocess.run([*tamis, "init", "screen"], cwd=home, check=True, capture_output=True)
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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*tamis, "serve", "screen.yaml", "--port", str(port)],
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
