"""What the docs and examples show is run."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tiers.backends.files import PRESETS
from tiers.placing import open_tier
from tiers.screenfile.file import Screen, load_screen
from tiers.tier import job_of
from tiers.types import Candidate

SECTIONS = (
    "Candidates", "LlamaTier", "VllmTier", "HttpTier", "OpenAIBatchTier", "PythonTier", "ClassifierTier", "Policy",
    "BudgetSection", "PriceSection", "GuaranteeSection", "AfterSection", "SqlSource", "WorkersSection",
)  # fmt: skip
ROOT = Path(__file__).parent.parent


def test_the_own_tier_of_the_examples_judges_its_tickets() -> None:
    screen = load_screen(ROOT / "examples" / "words.yaml")
    lines = (ROOT / "examples" / "tickets.jsonl").read_text().splitlines()
    tickets = [json.loads(line) for line in lines]
    tier = open_tier(job_of(screen, 0))
    try:
        texts = [f"{each['subject']}\n{each['body']}" for each in tickets]
        got = {j.id: j.score for j in tier.judge(Candidate(i, t) for i, t in enumerate(texts))}
    finally:
        tier.close()
    assert len(got) == 4
    assert got[0] > got[1]
    assert got[0] > got[3]


@pytest.mark.parametrize(
    "name", ["README.md", "docs/screen-file.md", "docs/backends.md", "docs/tier-zero.md"]
)
def test_the_screens_in_the_docs_are_valid(name: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    screens = [yaml.safe_load(block) for block in blocks if block.startswith("screen:")]
    assert screens
    for screen in screens:
        Screen.model_validate(screen)


def test_every_key_of_a_tier_is_documented() -> None:
    text = (ROOT / "docs" / "screen-file.md").read_text()
    schema = Screen.model_json_schema(by_alias=True)
    for section in SECTIONS:
        for key in schema["$defs"][section]["properties"]:
            assert re.search(rf"[`{{ ]{key}[`:]", text), f"{section}.{key}"


def test_systemd_takes_the_unit_of_the_examples(tmp_path: Path) -> None:
    if (verify := shutil.which("systemd-analyze")) is None:
        pytest.skip("no systemd-analyze on this machine")
    unit = tmp_path / "tamis.service"
    text = (ROOT / "examples" / "tamis.service").read_text()
    unit.write_text(text.replace("/srv/tamis/.venv/bin/tamis", sys.executable))
    found = subprocess.run([verify, "verify", unit], capture_output=True, text=True, check=False)
    assert str(unit) not in found.stderr, found.stderr
    assert "tamis.service" not in found.stderr, found.stderr


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "bench" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_nothing_else_in_the_environment_claims_our_names() -> None:
    owners = packages_distributions()
    for name in ("flows", "tiers", "db", "migrations", "demo"):
        assert set(owners.get(name, ["tamis"])) == {"tamis"}, f"{name}: {owners[name]}"


def test_presets_name_one_file_each() -> None:
    assert all(name.count("/") == 2 and name.endswith(".gguf") for name in PRESETS.values())
