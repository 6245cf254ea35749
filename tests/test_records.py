"""A record's long values are stored in its text alone, and read as if they were not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from db.compact import compact
from db.engine import _config, check_ready, open_engine
from db.query import ask
from db.records import LONG
from db.store import Row, Run, Store
from tests.project import tier_by
from tiers.screenfile.template import renderer

# Whatever a database keeps and JSON escapes: not the NUL character, and no halves of pairs.
CHARACTERS = st.one_of(
    st.sampled_from('"\\/\n\r\t\b\f\x01\x1f\x7f\u2028 :,aé😀'),
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.lists(st.text(CHARACTERS, max_size=9)),
    st.dictionaries(st.sampled_from("abc"), st.text(CHARACTERS, max_size=9), max_size=2),
    st.text(CHARACTERS, max_size=9),
    st.text(CHARACTERS, min_size=4).map(lambda part: part * LONG),
)  # fmt: skip
RECORDS = st.dictionaries(st.sampled_from(["a", "b", "c", 'q"', "é", "t\n"]), VALUES, max_size=5)
TEMPLATES = st.sampled_from([None, "{{ a }}", "{{ b }}\n{{ a }} {{ c }}", "only {{ c }}"])
ONES = ",1" * LONG + ","
ODD = {
    "values that look like structure": ({"x": ["x:", *[1] * LONG, "y"], "t": ONES}, ONES),
    "a name within": ({"x": {"t": "long" * LONG}, "t": "long" * LONG}, "long" * LONG),
    "one value twice": ({"s": "long" * LONG, "t": "long" * LONG}, "long" * LONG),
    "blanks around": ({"t": " \n" + "long" * LONG + "\t"}, "long" * LONG),
    "the same beginning": ({"s": "long" * LONG, "t": "long" * LONG + "!"}, "long" * LONG + "!"),
    "no text": ({"t": "long" * LONG}, ""),
}


@pytest.fixture
def engine(database_url):
    check_ready(database_url)
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def a_row(i: int, record: dict[str, Any], body: str) -> Row:
    return Row(i, f"k{i:03}", body.strip(), orjson.dumps({"id": f"k{i:03}", **record}))


def ingested(engine: Engine, rows: Sequence[Row]) -> Run:
    store = Store(engine)
    run = store.runs.open("papers", {}, "hash", [tier_by("only", 0.5)])
    store.candidates.begin(run.id)
    store.candidates.add(run.id, rows, "papers.jsonl")
    store.candidates.finish(run.id, len(rows), 0, allow_shrink=True)
    return run


def records(connection: Connection, run: Run) -> list[bytes]:
    query = text("SELECT fields FROM result WHERE run = :run ORDER BY key")
    return [str(fields).encode() for fields in connection.scalars(query, {"run": run.key})]


@given(records_=st.lists(st.tuples(RECORDS, TEMPLATES), min_size=1, max_size=6))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_records_are_read_byte_for_byte_as_they_were(engine, records_):
    rows = []
    for i, (record, template) in enumerate(records_):
        whole = dict.fromkeys("abc") | {"id": f"k{i:03}"} | record
        rows.append(a_row(i, record, renderer(template, "id")(whole)))
    run = ingested(engine, rows)
    with engine.connect() as connection:
        assert records(connection, run) == [row.fields for row in rows]
    found = Store(engine).results.all(run.id, fields=True)
    assert [each["fields"] for each in found] == [orjson.loads(row.fields) for row in rows]


def test_odd_records_are_too(engine):
    rows = [a_row(i, *odd) for i, odd in enumerate(ODD.values())]
    run = ingested(engine, rows)
    with engine.connect() as connection:
        assert records(connection, run) == [row.fields for row in rows]
    store = Store(engine)
    assert store.results.field_names(run.id) == ["id", "x", "t", "s"]
    assert store.results.explain(run.id, "k001").fields == orjson.loads(rows[1].fields)
    url = engine.url.render_as_string(hide_password=False)
    asked = ask(url, "SELECT fields FROM result ORDER BY key")
    assert [row["fields"].encode() for row in asked] == [row.fields for row in rows]


@pytest.mark.parametrize("template", [None, "{{ a }}", "{{ b }}\n{{ a }}", "Say: {{ a }}"])
def test_what_the_text_says_is_stored_once(engine, template):
    record = {"a": "first thing " * 200, "b": "other thing " * 200, "c": 1}
    body = renderer(template, "id")({"id": "k000", **record})
    ingested(engine, [a_row(0, record, body)])
    with engine.connect() as connection:
        size = "SELECT LENGTH(fields) + LENGTH(from_text) FROM candidate_fields"
        beside = connection.exec_driver_sql(size).scalar_one()
    in_text = sum(str(value).strip() in body for value in record.values() if value != 1)
    assert beside < 200 + 2400 * (2 - in_text)


def test_who_does_not_ask_for_the_record_does_not_pay_for_it(engine):
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:

        def plan(column: str) -> str:
            sql = f"{explain} SELECT key, {column} FROM result WHERE run = 'papers-1'"
            return str(connection.exec_driver_sql(sql).all())

        assert "candidate_fields" in plan("fields")
        assert "candidate_fields" not in plan("verdict")


def test_records_of_before_read_the_same_and_are_found_again(database_url):
    """A database at 0007 stored the record whole; down there again, it has it whole."""
    check_ready(database_url)
    engine = open_engine(database_url)
    rows = [a_row(i, *odd) for i, odd in enumerate(ODD.values())]
    run = ingested(engine, rows)
    with engine.connect() as connection, connection.begin():
        command.downgrade(_config(connection), "0007")
        assert records(connection, run) == [row.fields for row in rows]
        stored = connection.exec_driver_sql("SELECT fields FROM candidate_fields ORDER BY 1")
        assert sorted(stored.scalars()) == sorted(row.fields.decode() for row in rows)
    with engine.connect() as connection, connection.begin():
        command.upgrade(_config(connection), "head")
        assert records(connection, run) == [row.fields for row in rows]
    store = Store(engine)
    store.candidates.begin(run.id)
    again = store.candidates.add(run.id, rows, "papers.jsonl")
    assert (again.new, again.changed, again.known) == (0, 0, len(rows))
    engine.dispose()


@pytest.mark.postgres
def test_postgres_compresses_texts_by_lz4_where_it_can(postgres_url):
    check_ready(postgres_url)
    engine = open_engine(postgres_url)
    with engine.connect() as connection:
        able = connection.exec_driver_sql(
            "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
        ).scalar()
        chosen = connection.exec_driver_sql(
            "SELECT attcompression FROM pg_attribute "
            "WHERE attrelid = 'text'::regclass AND attname = 'body'"
        ).scalar()
    engine.dispose()
    assert chosen == ("l" if able else "")


def test_answers_reach_the_file_as_often_as_before(sqlite_url):
    check_ready(sqlite_url)
    engine = open_engine(sqlite_url)
    with engine.connect() as connection:
        usual = connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar()
    store = Store(engine)
    run = store.runs.open("papers", {}, "hash", [tier_by("only", 0.5)])

    def now() -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar_one())

    for end in (
        lambda: store.candidates.finish(run.id, 1, 0),
        lambda: store.candidates.cancel(run.id),
    ):
        store.candidates.begin(run.id)
        store.candidates.add(run.id, [a_row(0, {}, "text")], "papers.jsonl")
        assert now() > usual
        end()
        assert now() == usual
    engine.dispose()


def test_old_records_are_compacted_and_read_as_they_were(database_url):
    check_ready(database_url)
    engine = open_engine(database_url)
    rows = [a_row(i, *odd) for i, odd in enumerate(ODD.values())]
    rows += [
        a_row(i, {"t": f"{i} " + "long " * 2_000}, f"{i} " + "long " * 2_000)
        for i in range(10, 1300)
    ]
    run = ingested(engine, rows)
    for revision in ("0007", "head"):
        with engine.connect() as connection, connection.begin():
            move = command.upgrade if revision == "head" else command.downgrade
            move(_config(connection), revision)
    engine.dispose()
    file = Path(database_url.removeprefix("sqlite:///"))
    before = file.stat().st_size if file.exists() else None
    done = compact(database_url)
    assert done.records == len(rows) - 2  # one odd record looks like structure, one has no text
    assert done.characters > 1290 * 9_900
    assert compact(database_url) == (0, 0)
    assert before is None or file.stat().st_size < 0.6 * before
    with engine.connect() as connection:
        assert sorted(records(connection, run)) == sorted(row.fields for row in rows)
    engine.dispose()
