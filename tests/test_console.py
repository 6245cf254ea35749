"""What candidates, servers and files write is shown, and never obeyed by a terminal."""

import io
import json
import logging
import sys

import pytest
from rich.progress import Progress
from typer.testing import CliRunner

from db.store import Explanation, JudgementDetail
from flows.cli import app
from flows.commands import console
from flows.commands.console import Errors, print_json, print_rows
from flows.commands.results import _show_explanation
from flows.files.writing import Format, write_results
from flows.progress import Display, _Log
from flows.report.inspection import File, ScreenInspection, TierInspection, show_inspection
from flows.terminal import Terminal, number, visible
from tests.project import tier_by
from tiers.types import Outcome

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\x7fb\r\u202ec\u2067\U000e0041 :100: [red]x[/red]"
SHOWN = "a\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\x7fb\\r\\u202ec\\u2067\\U000e0041 :100: [red]x[/red]"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a person's terminal gets."""
    seen = io.StringIO()
    for name, module in (
        ("out", "flows.cli"),
        ("out", "flows.commands.console"),
        ("out", "flows.commands.results"),
        ("err", "flows.commands.console"),
    ):
        kind = Errors if name == "err" else Terminal
        terminal = kind(file=seen, force_terminal=True, color_system=None, width=300)
        monkeypatch.setattr(f"{module}.{name}", terminal)
    return seen


def test_control_characters_are_shown_and_line_ends_stay():
    assert visible(EVIL) == SHOWN
    assert visible("a\tb\nc\r\nd é 中 🙂") == "a\tb\nc\nd é 中 🙂"
    assert visible("שלום سلام \u200b👩\u200d🚀") == "שלום سلام \u200b👩\u200d🚀"
    every = visible("".join(map(chr, range(256))))
    assert not {c for c in every if (ord(c) < 32 or 127 <= ord(c) < 160) and c not in "\t\n"}


def test_explain_shows_what_a_candidate_and_a_server_wrote(screen):
    _, plan = tier_by("fast", 0.1)
    detail = JudgementDetail(
        0, "fast", Outcome.REVIEW, 0.000012, EVIL, None, EVIL, None, 0, 0, 0, 0.0, False, None, {}, plan, 0, None,
    )  # fmt: skip
    found = Explanation(f"k{EVIL}", {}, EVIL, "review", "fast", EVIL, [detail], None)
    _show_explanation(found)
    assert screen.getvalue().count(SHOWN) == 5
    assert "1.2e-05" in screen.getvalue()


def test_check_shows_what_a_file_and_a_prompt_hold(screen):
    found = ScreenInspection(
        "papers",
        [File(EVIL, 1.0)],
        {"key": EVIL, "text": ""},
        [TierInspection("fast", EVIL, EVIL, None, None, None, None)],
        [EVIL],
    )
    show_inspection(found, console.out)
    assert screen.getvalue().count(SHOWN) == 5


def test_errors_and_tables_show_it(screen):
    with pytest.raises(SystemExit):
        console.fail(EVIL)
    print_rows([{f"x{EVIL}": EVIL, "n": 0.000012}], False, empty="")
    assert screen.getvalue().count(SHOWN) == 3
    assert "1.2e-05" in screen.getvalue()


def test_errors_are_lines_of_json_where_that_is_asked(screen, monkeypatch, capsys):
    monkeypatch.setenv("TAMIS_LOG_FORMAT", "json")
    with pytest.raises(SystemExit):
        console.fail(EVIL)
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["message"]) == ("error", EVIL)
    assert not screen.getvalue()


def test_progress_and_what_tiers_log_show_it(screen, capsys):
    with _Log(Display()):
        logging.getLogger("tiers.any").warning("%s", EVIL)
    assert SHOWN in capsys.readouterr().err
    Display(Progress(console=Terminal(file=screen, width=300))).say(EVIL)
    assert SHOWN in screen.getvalue()


def test_json_escapes_what_json_would_allow(capsys):
    print_json({"x": EVIL})
    said = capsys.readouterr().out
    assert json.loads(said) == {"x": EVIL}
    assert visible(said) == said


def test_a_csv_is_shown_on_a_terminal_and_exact_in_a_file(monkeypatch, tmp_path):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen = Screen()
    monkeypatch.setattr(sys, "stdout", seen)
    write_results(iter([{"key": EVIL}]), None, Format.CSV)
    write_results(iter([{"key": EVIL}]), None, Format.JSONL)
    assert visible(seen.getvalue()) == seen.getvalue()
    write_results(iter([{"key": EVIL}]), tmp_path / "a.csv", Format.CSV)
    assert EVIL.encode() in (tmp_path / "a.csv").read_bytes()


def test_sql_shows_it(sqlite_url, monkeypatch):
    monkeypatch.setenv("TAMIS_DATABASE_URL", sqlite_url)
    from db.engine import check_ready

    check_ready(sqlite_url)
    told = CliRunner().invoke(
        app, ["sql", "SELECT char(27) || '[2J' || ':100:' AS x, 0.000012 AS y"]
    )
    assert "\\x1b[2J:100:" in told.output
    assert "1.2e-05" in told.output
    assert "\x1b" not in told.output


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0.0000"), (0.25, "0.2500"), (0.000012, "1.2e-05"), (-0.000012, "-1.2e-05"),
        (0.99999, "0.99999"), (0.9999, "0.9999"), (1.0, "1.00"), (1234.5, "1,234.50"),
    ],
)  # fmt: skip
def test_a_number_is_not_rounded_to_another(value, said):
    assert number(value) == said


def test_a_fault_of_ours_is_told_with_its_traceback_and_obeyed_by_nobody(screen, monkeypatch):
    from flows import cli

    def broken() -> None:
        raise RuntimeError(EVIL)

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(cli, "err", console.err)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert f"RuntimeError: {SHOWN}" in screen.getvalue()
    assert "in broken" in screen.getvalue()
