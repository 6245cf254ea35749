"""Files to candidates: everything is counted, and what is bad keeps its reason and line."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from db.engine import check_ready, open_engine
from db.query import ask
from db.store import Run, Store
from flows.files.ingest import first_text, ingest
from tests.project import tier_by
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Candidates


class Home:
    """A store with one run, and a folder for its input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/test.db"
        check_ready(self.url)
        self.engine = open_engine(self.url)
        self.store = Store(self.engine)
        self.run = self.open()

    def open(self, key: str = "one") -> Run:
        plan = tier_by("only", accept_above=0.5)
        return self.store.runs.open("screen", {}, "hash", [plan], key=key)

    def read(self, name: str, *, key: str = "id", text: str | None = "{{ text }}", **more: int):  # type: ignore[no-untyped-def]
        section = Candidates.model_validate(
            {"from": str(self.folder / name), "key": key, "text": text}
        )
        return ingest(self.store, self.run.id, section, **more)

    def bad(self) -> list[dict[str, object]]:
        return ask(self.url, "SELECT line, reason, raw FROM bad_row ORDER BY line, id")

    def texts(self) -> dict[str, str]:
        rows = ask(self.url, "SELECT key, text FROM result ORDER BY key")
        return {row["key"]: row["text"] for row in rows}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.engine.dispose()


def lines(path: Path, *rows: object) -> None:
    path.write_bytes(
        b"".join(
            row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows
        )
    )


def test_the_three_formats_give_the_same_candidates(home: Home) -> None:
    rows = [{"id": f"k{i}", "text": f'line "{i}"\nand, more é'} for i in range(50)]
    lines(home.folder / "a.jsonl", *rows)
    with (home.folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    duckdb.execute(
        f"COPY (SELECT * FROM read_json('{home.folder}/a.jsonl')) TO '{home.folder}/a.parquet'"
    )
    (home.folder / "b.jsonl.gz").write_bytes(gzip.compress((home.folder / "a.jsonl").read_bytes()))
    assert home.read("a.jsonl").new == 50
    for name in ("a.csv", "a.parquet", "b.jsonl.gz"):
        assert home.read(name) == (0, 0, 50, 0, 0, 0), name
    assert home.texts()["k7"] == 'line "7"\nand, more é'


def test_a_pattern_reads_all_its_files(home: Home) -> None:
    for part in range(3):
        lines(home.folder / f"part{part}.jsonl", {"id": part, "text": "t"})
    assert home.read("part*.jsonl").new == 3


def test_a_second_reading_adds_and_counts_nothing_twice(home: Home) -> None:
    lines(home.folder / "a.jsonl", {"id": 1, "text": "a"}, b"{broken\n", {"id": 1, "text": "a"})
    for _ in range(2):
        done = home.read("a.jsonl")
        assert (done.duplicate, done.bad) == (1, 1)
    assert len(home.bad()) == 1
    status = home.store.runs.status(home.run.id)
    assert (status.rows_read, status.rows_duplicate, status.account.candidates) == (3, 1, 2)


def test_what_is_bad_keeps_reason_and_line_and_the_rest_goes_on(home: Home) -> None:
    lines(
        home.folder / "a.jsonl",
        *({"id": i, "text": f"text {i}"} for i in range(70_000)),
        b'{"id": 70001, "text": broken\n',
        b'{"id": 70002, "text": "\xff\xfe"}\n',
        [1, 2],
        {"text": "nobody"},
        {"id": 3, "text": "another text"},
        {"id": "empty", "text": "  "},
        {"id": "less"},
        {"id": "nul", "text": "a\0b"},
        {"id": "long", "text": "x" * 5_000_000},
        {"id": "last", "text": "the end"},
    )
    home.read("a.jsonl")
    reasons = {row["line"]: row["reason"] for row in home.bad()}
    assert set(reasons) == {70_001, 70_002, 70_003, 70_004, 70_005}
    assert "no JSON" in reasons[70_001]
    assert "no JSON" in reasons[70_002]
    assert "one object a line" in reasons[70_003]
    assert "no value in the key column 'id'" in reasons[70_004]
    assert "different content" in reasons[70_005]
    account = home.store.runs.account(home.run.id)
    assert account.candidates == 70_010
    assert account.review == 2  # empty, and the one that lacks what the template names
    assert account.failed == 5
    whys = ask(home.url, "SELECT key, why FROM result WHERE verdict = 'review' ORDER BY key")
    assert [row["key"] for row in whys] == ["empty", "less"]
    assert whys[0]["why"] == "empty text"
    assert "'text' is undefined" in whys[1]["why"]
    rare = ask(home.url, "SELECT key, text FROM result WHERE key IN ('nul', 'long', 'last')")
    assert {row["key"]: len(row["text"]) for row in rare} == {
        "nul": 3,
        "long": 5_000_000,
        "last": 7,
    }


def test_bad_rows_of_a_csv_stand_alone(home: Home) -> None:
    (home.folder / "a.csv").write_bytes(
        b'\xef\xbb\xbfid;text\n1;"two\nlines"\n2;a;b\n3\n4;\xff\n;nobody\n007;n\x00ul\n\n8;last'
    )
    done = home.read("a.csv")
    assert home.texts() == {"1": "two\nlines", "007": "n\ufffdul", "8": "last"}
    assert done.bad == 4
    reasons = {row["line"]: row["reason"] for row in home.bad()}
    assert reasons == {
        4: "3 values under 2 column names",
        5: "1 values under 2 column names",
        6: "invalid UTF-8",
        7: "no value in the key column 'id'",
    }


def test_a_quote_that_is_never_closed_costs_one_row(home: Home) -> None:
    (home.folder / "a.csv").write_bytes(
        b'id,text\nk1,one\nk2,"starts\nk3,"two\nlines"\nk4,fo\rur\nk5,"a"b\nk6,"open\nk7,last\n'
    )
    home.read("a.csv")
    reasons = {row["line"]: row["reason"] for row in home.bad()}
    assert "k1" in home.texts()
    assert "k7" in home.texts()
    assert all("no CSV" in reason for reason in reasons.values())
    assert 3 in reasons


def test_a_changed_file_replaces_what_it_changed(home: Home) -> None:
    lines(home.folder / "a.jsonl", *({"id": k, "text": k} for k in ("one", "two", "three")))
    home.read("a.jsonl")
    lines(home.folder / "a.jsonl", {"id": "one", "text": "one"}, {"id": "two", "text": "corrected"})
    home.read("a.jsonl")
    assert home.texts() == {"one": "one", "two": "corrected"}
    assert home.store.runs.account(home.run.id).failed == 0


def test_keys_that_a_number_cannot_hold_are_refused(home: Home) -> None:
    lines(
        home.folder / "a.jsonl",
        b'{"id": 123456789012345678901, "text": "a"}\n',
        {"id": 7, "text": "b"},
    )
    home.read("a.jsonl")
    assert home.texts() == {"7": "b"}
    assert "write it as text" in str(home.bad()[0]["reason"])


def test_a_template_that_fails_sends_its_record_to_review(home: Home) -> None:
    lines(home.folder / "a.jsonl", {"id": 1, "n": 0}, {"id": 2, "n": 2})
    home.read("a.jsonl", text="{{ 6 / n }}")
    assert home.texts() == {"1": None, "2": "3.0"}


def test_without_a_template_every_column_but_the_key_is_read(home: Home) -> None:
    lines(home.folder / "a.jsonl", {"id": 1, "name": "Mira", "age": 7, "note": None})
    home.read("a.jsonl", text=None)
    assert home.texts() == {"1": "name: Mira\nage: 7"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_that_no_row_has_is_told_before_anything_is_read(home: Home, name: str) -> None:
    lines(home.folder / "a.jsonl", {"id": 1, "text": "a"})
    (home.folder / "a.csv").write_text("id,text\n1,a\n")
    duckdb.execute(f"COPY (SELECT 1 AS id, 'a' AS text) TO '{home.folder}/a.parquet'")
    with pytest.raises(ScreenError) as caught:
        home.read(name, key="ident", text="{{ resume }}")
    key, *text = caught.value.problems
    assert "candidates.key: names 'ident'" in key
    assert "it has id, text" in key
    if name != "a.jsonl":  # where each record has columns of its own
        assert "candidates.text: names 'resume'" in text[0]
    assert home.store.runs.account(home.run.id).candidates == 0


def test_files_that_are_not_there_or_no_table_are_told(home: Home) -> None:
    with pytest.raises(ScreenError, match="no such file"):
        home.read("absent.csv")
    (home.folder / "a.docx").touch()
    with pytest.raises(ScreenError, match=r"not a .csv"):
        home.read("a.docx")
    (home.folder / "a.parquet").write_text("no parquet")
    with pytest.raises(ScreenError, match="no Parquet"):
        home.read("a.parquet")
    (home.folder / "a.csv").write_text("id,text,id\n1,2,3\n")
    with pytest.raises(ScreenError, match="two columns are called 'id'"):
        home.read("a.csv")


def test_a_limit_reads_no_more(home: Home) -> None:
    lines(home.folder / "a.jsonl", *({"id": i, "text": "t"} for i in range(10)))
    lines(home.folder / "b.jsonl", *({"id": i + 10, "text": "t"} for i in range(10)))
    assert home.read("*.jsonl", limit=13).new == 13


def test_the_first_candidate_that_can_be_read_is_shown(home: Home) -> None:
    lines(home.folder / "a.jsonl", {"id": 1, "text": ""}, {"id": 2, "text": "second"})
    section = Candidates.model_validate(
        {"from": str(home.folder / "a.jsonl"), "key": "id", "text": "{{ text }}"}
    )
    assert first_text(section) == ("2", "second")


@pytest.mark.parametrize("name", ["größe".encode("latin-1"), b"gr\xff"])
def test_column_names_that_are_not_utf8_are_told(home, name):
    (home.folder / "a.csv").write_bytes(b"id,text," + name + b"\n1,a,b\n")
    with pytest.raises(
        ScreenError, match="the line of column names is not UTF-8; save the file as"
    ):
        home.read("a.csv")


def test_a_time_of_day_with_a_zone_is_kept(home):
    file = str(home.folder / "a.parquet")
    duckdb.execute(
        "COPY (SELECT 1 AS id, 'a' AS text, '12:00:00+00'::TIMETZ AS at, DATE '2020-02-01' AS day, "
        "TIMESTAMPTZ '2020-01-01 00:00:00+00' AS made) TO '" + file + "'"
    )
    assert home.read("a.parquet").new == 1
    [row] = ask(home.url, "SELECT fields FROM result")
    assert json.loads(row["fields"]) == {
        "id": 1, "text": "a", "at": "12:00:00+00:00", "day": "2020-02-01",
        "made": "2020-01-01T00:00:00+00:00",
    }  # fmt: skip


def test_a_byte_order_mark_is_no_part_of_the_first_record(home):
    lines(
        home.folder / "a.jsonl", b"\xef\xbb\xbf", {"id": "a", "text": "x"}, {"id": "b", "text": "y"}
    )
    assert home.read("a.jsonl")[:3] == (2, 0, 0)
    assert home.texts() == {"a": "x", "b": "y"}
    assert home.bad() == []


def test_brackets_in_the_name_of_a_file_are_its_name(home):
    folder = home.folder / "part [1]"
    folder.mkdir()
    lines(folder / "a[b]*.jsonl", {"id": "a", "text": "x"})
    lines(folder / "ab.jsonl", {"id": "b", "text": "y"})
    assert home.read("part [1]/a[b]*.jsonl").new == 1
    assert home.texts() == {"a": "x"}
