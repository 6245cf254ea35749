"""What a person sees and presses in the Prefect UI, in a real browser; skipped where there is none."""

import socket

import pytest

from bench.browser import browser, installed

from .project import Project
from .test_prefect import asked, until
from .test_run import tier
from .test_serve import deployment, ended, named, serving

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium: apt-get install chromium")


def test_a_run_started_by_pressing_the_button_ends_as_it_should(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    del project.env["PREFECT_API_URL"]  # a server of our own, with its UI
    address = f"http://127.0.0.1:{port}"
    prefect_url = f"{address}/api"
    second = tier("second", "accept_above: 0.5", options="salt: other, seconds: 0.05")
    project.write(tier("first", "reject_below: 0.3"), second, count=40)
    named(project, "pressed")
    with serving(project, "screen.yaml", "--port", str(port)), browser(height=1900) as page:
        mine = deployment(prefect_url, "screen/pressed")["id"]
        page.open(f"{address}/v2/deployments/deployment/{mine}/run")
        form = page.text()
        for words in ("Run key", "first: reject below", "In the screen file: 0.3", "Limit, rows"):
            assert words in form
        page.fill("Limit, rows", "30")
        page.click("Submit")
        wanted = {"flow_runs": {"deployment_id": {"any_": [mine]}}}
        (run,) = until(lambda: asked(f"{prefect_url}/flow_runs/filter", wanted))
        assert run["parameters"]["limit"] == 30
        name, state, message = ended(prefect_url, run["id"])
        assert (name, state) == ("pressed pressed-1", "Completed")
        assert "30 candidates = " in message
        page.open(f"{address}/v2/runs/flow-run/{run['id']}")
        seen = page.text()
        assert "pressed pressed-1" in seen
        assert "30 candidates = " in seen
