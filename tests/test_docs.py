"""Pages that a program reads as well: the tree of the architecture, and Python that is run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("tiers", "db", "migrations", "flows")


def test_the_tree_of_the_architecture_is_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    told = re.findall(rf"^    ((?:{'|'.join(FOLDERS)})/[\w/]+\.py)\s+\S", page, flags=re.MULTILINE)
    there = [
        str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("*.py")
    ]
    assert sorted(told) == sorted(there)


def test_the_page_for_python_runs_from_top_to_bottom(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "from-python.md").read_text()
    script = []
    for language, block in re.findall(r"```(python|yaml)\n(.*?)```", page, flags=re.DOTALL):
        named = re.match(r"# (\w+\.\w+)\n", block)
        if named:
            (tmp_path / named[1]).write_text(block)
        else:
            assert language == "python"
            script.append(block)
    assert len(script) == 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "TAMIS_RECORD": "false", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
