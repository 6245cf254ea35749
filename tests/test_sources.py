"""Candidates from beyond a file on this disk, and results handed on: real databases, HTTP over loopback."""

import functools
import gzip
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from db.engine import open_engine
from db.errors import WrongUrl
from db.store import Row, opened_store
from flows.files.ingest import check_input, to_rows
from flows.files.sources import sources
from flows.files.writing import WritingError
from flows.run.screening import prepare
from flows.settings import Settings
from tests.project import screened
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Candidates, load_screen

HERE = Path(__file__).parent
TIER = f'{{name: only, backend: python, path: "tests.own_tiers:Steady", folder: {HERE.parent}, policy: {{accept_above: 0.5}}}}'


def candidates(source: Any, **more: Any) -> Candidates:
    return Candidates.model_validate({"from": source, "key": "id", **more})


def rows_of(given: Candidates) -> list[Row]:
    found = []
    for source in sources(given.source):
        found += to_rows(source.records(), given, source.name)
    assert all(isinstance(one, Row) for one in found), found
    return found  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAMIS_DATABASE_URL", f"sqlite:///{tmp_path}/tamis.db")
    monkeypatch.setenv("TAMIS_RECORD", "false")
    return tmp_path


def write(folder: Path, source: str, after: str = "") -> Path:
    file = folder / "screen.yaml"
    file.write_text(
        f"screen: try\ncandidates: {{from: {source}, key: id}}\nrubric: any\ntiers:\n  - {TIER}\n"
        + (f"after: {after}\n" if after else "")
    )
    return file


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def warehouse(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """Somebody's database, which is not ours, with a password in its address where it has one."""
    if request.param == "sqlite":
        url = make_url(f"sqlite:///{tmp_path}/warehouse.db")
    else:
        url = make_url(str(request.getfixturevalue("postgres_url")))
        url = url.set(drivername="postgresql+psycopg")
    monkeypatch.setenv("WAREHOUSE_URL", url.render_as_string(hide_password=False))
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE paper (id TEXT, title TEXT, year INTEGER)"))
    yield engine
    engine.dispose()


def add(warehouse: Engine, *ids: str) -> None:
    with warehouse.begin() as connection:
        for each in ids:
            values = {"id": each, "title": f"title of {each}"}
            connection.execute(text("INSERT INTO paper VALUES (:id, :title, 2020)"), values)


QUERY = '{sql: "SELECT id, title, year FROM paper ORDER BY id", url_variable: WAREHOUSE_URL}'


def test_a_growing_table_is_judged_once_a_row(folder: Path, warehouse: Engine) -> None:
    add(warehouse, "a", "b")
    definition = load_screen(write(folder, QUERY))
    assert screened(definition) == "try-1"
    add(warehouse, "c")
    assert screened(definition) == "try-2"
    with opened_store(Settings().database()) as store:
        run = store.runs.find("try-2")
        (tier,) = store.results.funnel(run.id)
        assert (tier.judged, tier.reused) == (1, 2)
        found = store.results.explain(run.id, "c")
        assert found.fields == {"id": "c", "title": "title of c", "year": 2020}
        address = make_url(warehouse.url).render_as_string(hide_password=False)
        assert address not in json.dumps(run.config)


def test_a_query_that_cannot_be_used_is_told_without_its_password(
    folder: Path, warehouse: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(warehouse, "a")
    for sql, said in (
        ("SELECT title FROM paper", "names 'id', which query lacks; it has title"),
        ("SELECT nothing FROM nowhere", "nowhere"),
        ("SELECT id FROM paper WHERE 1 = 0", "holds no candidate"),
    ):
        with pytest.raises(ScreenError, match=said):
            screened(load_screen(write(folder, f'{{sql: "{sql}", url_variable: WAREHOUSE_URL}}')))
    definition = load_screen(write(folder, QUERY))
    monkeypatch.setenv("WAREHOUSE_URL", "postgresql://ada:hushhush@127.0.0.1:1/none")
    with pytest.raises(ScreenError) as refused:
        screened(definition)
    assert "hushhush" not in str(refused.value)
    monkeypatch.delenv("WAREHOUSE_URL")
    with pytest.raises(ScreenError, match="the variable WAREHOUSE_URL is not set; write the"):
        screened(definition)


def test_a_query_changes_nothing(folder: Path, warehouse: Engine) -> None:
    add(warehouse, "a")
    sql = "DELETE FROM paper RETURNING id"
    source = {"sql": sql, "url_variable": "WAREHOUSE_URL"}
    with suppress(ScreenError):  # Postgres takes it for no query at all
        rows_of(candidates(source))
    with warehouse.connect() as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM paper")) == 1


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    served = tmp_path / "web"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield served, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_file_on_a_web_server_is_read_as_one_on_the_disk(web: tuple[Path, str]) -> None:
    served, address = web
    (served / "a.csv").write_text("id,title\n1,one\n2,two\n")
    assert [row.key for row in rows_of(candidates(f"{address}/a.csv"))] == ["1", "2"]
    with pytest.raises(ScreenError, match="nothing is there; write its address"):
        check_input(candidates(f"{address}/other.csv"))
    with pytest.raises(ScreenError, match=r"not a \.csv"):
        check_input(candidates(f"{address}/a.docx"))


def test_a_missing_driver_names_the_extra() -> None:
    with pytest.raises(
        ScreenError, match=r"'s3://' needs s3fs; run: pip install 'tamis\[remote\]'"
    ):
        check_input(candidates("s3://bucket/a.csv"))
    with pytest.raises(ScreenError, match="'odd://' needs fsspec"):
        check_input(candidates("odd://bucket/a.csv"))


def test_a_workbook_is_read_by_its_first_sheet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in (
        ["id", "title", None],
        [1, "one", "x"],
        [2.0, "two", None],
        [None, None, None],
        ["é", "three", 1],
    ):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    rows = rows_of(candidates(str(tmp_path / "a.xlsx")))
    assert [row.key for row in rows] == ["1", "2", "é"]
    assert [row.line for row in rows] == [2, 3, 5]
    assert json.loads(rows[0].fields) == {"id": 1, "title": "one"}
    (tmp_path / "b.xlsx").write_bytes(b"no workbook")
    with pytest.raises(ScreenError, match="no workbook that can be read"):
        check_input(candidates(str(tmp_path / "b.xlsx")))


def test_json_lines_are_taken_from_standard_input(folder: Path) -> None:
    write(folder, '"-"')
    lines = (
        "".join(json.dumps({"id": i, "text": f"text {i}"}) + "\n" for i in range(5)) + "broken\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "screen.yaml", "--json"],
        input=lines, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(HERE.parent), "TAMIS_TRUSTED_FOLDERS": "/", "TAMIS_RECORD": "false", "TAMIS_DATABASE_URL": f"sqlite:///{folder}/tamis.db"},
    )  # fmt: skip
    finished = json.loads(done.stdout)
    assert (finished["candidates"], finished["rows"]["bad"], done.returncode) == (6, 1, 3), (
        done.stderr
    )


def test_results_are_handed_on_to_a_file(folder: Path) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n2,two\n3,three\n")
    definition = load_screen(write(folder, "in.csv", "{results: 'out/{run}.csv'}"))
    screened(definition, key="monday")
    assert len((folder / "out" / "monday.csv").read_text().splitlines()) == 4
    assert list((folder / "out").iterdir()) == [folder / "out" / "monday.csv"]


def test_results_are_not_written_through_a_link_that_came_with_a_screen(folder: Path) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n")
    (folder / "mine.txt").write_text("mine")
    (folder / "out").mkdir()
    for name in ("monday.csv", ".monday.csv.part"):
        (folder / "out" / name).symlink_to(folder / "mine.txt")
    definition = load_screen(write(folder, "in.csv", "{results: 'out/{run}.csv'}"))
    screened(definition, key="monday")
    assert (folder / "mine.txt").read_text() == "mine"
    assert len((folder / "out" / "monday.csv").read_text().splitlines()) == 2


def test_results_are_handed_on_to_a_table_in_one_piece(folder: Path, warehouse: Engine) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n2,two\n3,three\n")
    after = "{table: screened, url_variable: WAREHOUSE_URL}"
    definition = load_screen(write(folder, "in.csv", after))
    for _ in range(2):  # the second time the rows of the first are replaced
        screened(definition, key="monday")
        with warehouse.connect() as connection:
            found = connection.execute(
                text("SELECT run, key, verdict FROM screened ORDER BY key")
            ).all()
        assert [row[:2] for row in found] == [("monday", "1"), ("monday", "2"), ("monday", "3")]
        assert {row[2] for row in found} <= {"accepted", "rejected"}


def test_results_that_cannot_be_handed_on_cost_the_run_nothing(folder: Path) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n")
    (folder / "taken").write_text("a file, and no folder")
    definition = load_screen(write(folder, "in.csv", "{results: taken/out.csv}"))
    with pytest.raises(
        WritingError, match="run monday is done, and its results could not be handed on"
    ):
        screened(definition, key="monday")
    with opened_store(Settings().database()) as store:
        run = store.runs.find("monday")
        assert run.state == "done"
        assert "could not be handed on" in str(store.runs.status(run.id).reason)


def test_a_place_that_cannot_be_written_is_refused_before_anybody_is_asked(folder: Path) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n")
    (folder / "taken").write_text("a file, and no folder")
    for after, said in (
        ("{results: taken/out.csv}", "out.csv cannot be written; name a file"),
        ("{table: t, url_variable: NOWHERE_URL}", "the variable NOWHERE_URL is not set"),
    ):
        with pytest.raises(WritingError, match=said):
            prepare(load_screen(str(write(folder, "in.csv", after))), None)
    assert not (folder / "tamis.db").exists()


def test_a_misspelt_database_is_not_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", f"sqlite:///{folder}/warehuose.db")
    with pytest.raises(ScreenError, match="no such database"):
        rows_of(load_screen(write(folder, QUERY)).candidates)
    assert not (folder / "warehuose.db").exists()


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("{verdict: accepted}", "write either results"),
        ("{table: t}", "table and url_variable go together"),
        ("{table: 't; DROP', url_variable: URL}", "after.table"),
        ("{results: a.csv, verdict: yes}", "after.verdict"),
        ("{results: a.xlsx}", "'a.xlsx' is none of .csv, .json, .jsonl, .parquet"),
        ("{results: 'a-{date}.csv'}", "'{date}' stands for nothing; write {run} or {screen}"),
    ],
)
def test_a_place_for_results_that_is_none_is_refused(tmp_path: Path, after: str, said: str) -> None:
    with pytest.raises(ScreenError, match=said):
        load_screen(write(tmp_path, "in.csv", after))


def test_a_query_without_its_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScreenError, match=r"candidates\.from\.url_variable"):
        load_screen(write(tmp_path, "{sql: SELECT 1}"))
    with pytest.raises(ScreenError, match=r"candidates\.from\.url_variable"):
        load_screen(write(tmp_path, "{sql: SELECT 1, url_variable: 'postgresql://ada:x@h/d'}"))


def test_compressed_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "t": "x"}\n'))
    assert [row.key for row in rows_of(candidates(str(tmp_path / "a.jsonl.gz")))] == ["1"]


def test_a_file_is_handed_on_where_nobody_has_that_verdict(folder: Path) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n2\n")  # and a row that cannot be read
    for suffix in ("csv", "parquet"):
        after = f"{{results: '{{run}}.{suffix}', verdict: review}}"
        screened(load_screen(write(folder, "in.csv", after)), key="../../mon day")
    header = (folder / "mon-day.csv").read_text().splitlines()
    assert header == ["key,verdict,tier,score,why,only_score,only_reading,id,title"]
    names = duckdb.sql(f"SELECT * FROM '{folder}/mon-day.parquet'").columns
    assert names[:4] == ["key", "verdict", "tier", "score"]


def test_results_never_go_over_the_input(folder: Path) -> None:
    (folder / "in.csv").write_text("id,title\n1,one\n")
    with pytest.raises(ScreenError, match="would write over the candidates' own file"):
        load_screen(write(folder, "in.csv", "{results: in.csv}"))


def test_an_address_with_a_secret_is_refused_and_not_repeated(
    folder: Path, warehouse: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ScreenError, match="holds a user or a password") as refused:
        load_screen(write(folder, "'http://bob:hunter2@127.0.0.1/a.csv'"))
    assert "hunter2" not in str(refused.value)
    definition = load_screen(write(folder, QUERY))
    for address in (
        "postgresql://bob:gei@Secret77@127.0.0.1/d",
        "postgresql://bob:gei@Sec:ret77@127.0.0.1/d",
    ):
        monkeypatch.setenv("WAREHOUSE_URL", address)
        with pytest.raises(ScreenError, match="%40 for an @ in a password") as told:
            screened(definition)
        assert "ret77" not in str(told.value)
        with pytest.raises(WrongUrl, match="%40 for an @ in a password") as said:
            open_engine(address)
        assert "ret77" not in str(said.value)
    add(warehouse, "a")
    monkeypatch.setenv("WAREHOUSE_URL", warehouse.url.render_as_string(hide_password=False))
    twice = '{sql: "SELECT a.id, b.id FROM paper a JOIN paper b ON a.id = b.id", url_variable: WAREHOUSE_URL}'
    with pytest.raises(ScreenError, match="two columns are called 'id'"):
        screened(load_screen(write(folder, twice)))
