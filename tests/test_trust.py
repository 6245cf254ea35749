"""A screen file from a stranger runs no code, and reaches nothing outside its own folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tiers.opening import identity, inspect, open_backend
from tiers.placing import open_tier
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen, load_screen
from tiers.screenfile.tiers import PythonTier
from tiers.screenfile.trust import TRUSTED_FOLDERS
from tiers.tier import Job, job_of
from tiers.types import TierError

from .project import Project
from .test_run import tier

LOCAL = "{name: only, backend: llama, model: m.gguf}"
OWN = 'name: only, backend: python, path: "mine:Mine"'
CODE = """
from pathlib import Path
Path({ran!r}).touch()
class Mine:
    def __init__(self, rubric): pass
    def judge(self, candidates):
        from tiers import Judgement
        yield from (Judgement(one.id, 0.9) for one in candidates)
"""


@pytest.fixture(autouse=True)
def _nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set, not deleted: what the command line sets is taken back after the test as well.
    monkeypatch.setenv(TRUSTED_FOLDERS, "")


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """The folder of a stranger's screen, beside files of the reader's own."""
    (tmp_path / "payroll.csv").write_text("id,text\n1,secret\n")
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "in.jsonl").write_text('{"id": 1, "text": "x"}\n')
    (folder / "mine.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    return folder


def screen(folder: Path, *, source: str = "in.jsonl", tier: str = LOCAL, more: str = "") -> Path:
    path = folder / "screen.yaml"
    path.write_text(
        f"screen: try\ncandidates: {{from: {source}, key: id}}\nrubric: any\n{more}\n"
        f"tiers:\n  - {tier}\n"
    )
    return path


@pytest.mark.parametrize(
    "source",
    [
        "../payroll.csv", "/etc/hosts", "in/../../payroll.csv", "../*.csv", "/**/payroll.csv", "./..",
        "link.csv", "link*", "linked/payroll.csv", "linked/*", "**/*.csv", "file:///etc/x.csv",
        "local://x.csv", "simplecache::file:///x.csv", "s3://bucket/x.csv", "https://intern/x.csv",
        "{sql: SELECT 1, url_variable: WAREHOUSE_URL}",
    ],
)  # fmt: skip
def test_candidates_are_read_from_the_screens_own_folder_alone(downloads, source):
    (downloads / "link.csv").symlink_to(downloads.parent / "payroll.csv")
    (downloads / "linked").symlink_to(downloads.parent)
    path = screen(downloads, source=source if source.startswith("{") else f'"{source}"')
    with pytest.raises(
        ScreenError, match=r"candidates.from \(line 2\): .*which a screen file"
    ) as no:
        load_screen(path)
    assert f"{TRUSTED_FOLDERS}={downloads}" in str(no.value)
    load_screen(path, allow_code=True)


@pytest.mark.parametrize(
    "source", ["in.jsonl", "./in.jsonl", "*.jsonl", "a/../in.jsonl", "-", "no.csv"]
)
def test_files_of_its_own_folder_and_standard_input_need_no_word(downloads, source):
    path = screen(downloads, source=f'"{source}"')
    assert load_screen(path).candidates == load_screen(path, allow_code=True).candidates


@pytest.mark.parametrize(
    "after",
    [
        "results: ../out.csv", "results: /tmp/out.csv", "results: 'linked/{run}.csv'",
        "table: t, url_variable: WAREHOUSE_URL",
    ],
)  # fmt: skip
def test_results_are_written_into_the_screens_own_folder_alone(downloads, after):
    (downloads / "linked").symlink_to(downloads.parent)
    with pytest.raises(ScreenError, match=r"after.*\(line 4\): writes .*which a screen file"):
        load_screen(screen(downloads, more=f"after: {{{after}}}"))
    load_screen(screen(downloads, more="after: {results: 'out/{run}.csv'}"))


@pytest.mark.parametrize(
    "command", [["check"], ["run"], ["calibrate"], ["serve"], ["deploy", "--pool", "x"]]
)
def test_no_command_runs_code_of_a_stranger(downloads, tmp_path, monkeypatch, command):
    monkeypatch.setenv("TAMIS_DATABASE_URL", f"sqlite:///{tmp_path}/tamis.db")
    monkeypatch.setenv("TAMIS_RECORD", "false")
    monkeypatch.setattr("flows.server.answering_server", lambda: "http://127.0.0.1:1/api")
    told = CliRunner().invoke(
        app, [command[0], str(screen(downloads, tier=f"{{{OWN}}}")), *command[1:]]
    )
    assert isinstance(told.exception, ScreenError)
    assert "tiers[0] (line 6): runs code, the class mine:Mine, which" in str(told.exception)
    assert "--allow-code" in str(told.exception)
    assert not (tmp_path / "ran").exists()


def test_no_stored_or_sent_screen_runs_code_either(downloads, tmp_path):
    trusted = load_screen(screen(downloads, tier=f"{{{OWN}}}"), allow_code=True)
    stored = Screen.model_validate(
        trusted.model_dump(mode="json", by_alias=True, exclude_none=True)
    )
    for refused in (identity, lambda job: inspect(job, ""), open_backend, open_tier):
        with pytest.raises(TierError, match=r"runs code, the class mine:Mine of .*--allow-code"):
            refused(job_of(stored, 0))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "path", ["os:system", "subprocess:Popen", "builtins:exec", "code:interact"]
)
def test_no_class_of_python_itself_is_a_tier(downloads, path):
    tier = PythonTier(name="only", backend="python", path=path, folder=str(downloads))
    with pytest.raises(TierError, match="runs code"):
        open_backend(Job("touch ran", tier))


def test_a_module_is_trusted_by_where_its_file_really_lies(downloads, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv(TRUSTED_FOLDERS, f"{tmp_path}/other:{mine}")
    (mine / "mine.py").symlink_to(downloads / "mine.py")
    tier = PythonTier(name="only", backend="python", path="mine:Mine", folder=str(mine))
    with pytest.raises(TierError, match="runs code"):
        identity(Job("r", tier))
    (mine / "screen.yaml").symlink_to(screen(downloads, source="../payroll.csv"))
    with pytest.raises(ScreenError, match="outside"):
        load_screen(mine / "screen.yaml")


def test_a_working_folder_is_not_trusted_for_being_called_a_dot(downloads, monkeypatch):
    monkeypatch.chdir(downloads)
    monkeypatch.setenv(TRUSTED_FOLDERS, ".")
    with pytest.raises(ScreenError, match="runs code"):
        load_screen(screen(downloads, tier=f"{{{OWN}}}"))


def test_a_trusted_folder_is_not_taken_from_a_file_that_may_have_come_along(downloads, monkeypatch):
    monkeypatch.chdir(downloads)
    monkeypatch.delenv(TRUSTED_FOLDERS)
    (downloads / ".env").write_text(f"{TRUSTED_FOLDERS}=/\n")
    path = screen(downloads, tier=f"{{{OWN}}}")
    told = CliRunner().invoke(app, ["check", str(path)])
    assert isinstance(told.exception, ScreenError)


def test_vllm_gets_no_option_by_which_a_model_brings_code(downloads):
    tier = "{name: only, backend: vllm, model: a/b, options: {%s}}"
    with pytest.raises(ScreenError, match=r"tiers\[0\].options .*sets 'trust_remote_code'"):
        load_screen(screen(downloads, tier=tier % "trust_remote_code: true"))
    load_screen(screen(downloads, tier=tier % "max_model_len: 2048"))


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text", [BOMB, "screen: &a [*a]", "screen: " + "[" * 5000 + "]" * 5000, "a: &a {b: *a}"]
)
def test_a_screen_file_that_unfolds_without_end_is_refused(downloads, text):
    (downloads / "screen.yaml").write_text(text)
    with pytest.raises(ScreenError, match=r"holds more than 100,000 values|nested too deeply"):
        load_screen(downloads / "screen.yaml")


@pytest.mark.parametrize("how", ["flag", "folder"])
def test_who_trusts_a_screen_has_it_run(downloads, tmp_path, prefect_url, how):
    project = Project(downloads, prefect_url)
    project.env |= {
        "TAMIS_RECORD": "false",
        TRUSTED_FOLDERS: str(downloads) if how == "folder" else "",
    }
    screen(downloads, tier=f"{{{OWN}}}")
    code, found, err = project.run(*["--allow-code"] * (how == "flag"))
    assert (code, found["accepted"]) == (0, 1), err
    assert (tmp_path / "ran").exists()


def test_no_module_is_imported_from_the_folder_that_a_command_is_started_in(downloads, tmp_path):
    for name in ("pickle", "queue", "numpy", "tiers"):
        (downloads / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    script = (
        "from tiers.placing import open_tier; from tiers.tier import Job; "
        "from tiers.screenfile.tiers import PythonTier; "
        f"tier = PythonTier(name='a', backend='python', path='own_tier:Words', folder={str(Path(__file__).parents[1] / 'examples')!r}); "
        "open_tier(Job('r', tier.allowing_code())).close()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=downloads, env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


LOGGING = """
version: 1
formatters: {{any: {{(): os.mkdir, path: {ran}}}}}
root: {{level: INFO}}
"""


@pytest.mark.parametrize("command", ["run", "calibrate"])
def test_prefect_runs_nothing_that_lies_in_the_working_folder(
    downloads, tmp_path, prefect_url, command
):
    (downloads / "prefect.toml").write_text('[logging]\nconfig_path = "evil.yml"\n')
    (downloads / "evil.yml").write_text(LOGGING.format(ran=tmp_path / "ran"))
    project = Project(downloads, prefect_url)
    project.write(tier("a", "reject_below: 0.2"), tier("b", "accept_above: 0.5"), count=20)
    path = downloads / "screen.yaml"
    path.write_text(
        path.read_text()
        + "guarantee: {recall: 0.5, against: b, labels: 20}\n" * (command == "calibrate")
    )
    code, out, err = project.tamis(
        command, "screen.yaml", "--allow-code", "--database", project.database
    )
    assert code in (0, 3, 4), err
    assert out
    assert not (tmp_path / "ran").exists()
