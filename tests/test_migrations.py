import threading
from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from db.engine import _config, check_ready, open_engine, upgrade
from db.models import Base

# What a run of the first revision left: one accepted, one rejected by the second tier, one pending.
FIRST_ROWS = """
INSERT INTO run (id, key, screen, config, config_hash, state, created_at, seconds, ingests,
  rows_read, rows_duplicate)
  VALUES (1, 'papers-1', 'papers', '{}', 'hash', 'running', '2026-01-02 03:04:05', 9, 1, 3, 0);
INSERT INTO judge (id, digest, description) VALUES (1, 'aa', '{"model": "small"}');
INSERT INTO judge (id, digest, description) VALUES (2, 'bb', '{"model": "large"}');
INSERT INTO policy (id, reject_below, accept_above, created_at)
  VALUES (1, 0.2, 0.9, '2026-01-02 03:04:05');
INSERT INTO run_tier (run_id, position, name, judge_id, policy_id, last, state, seconds)
  VALUES (1, 0, 'fast', 1, 1, false, 'done', 4);
INSERT INTO run_tier (run_id, position, name, judge_id, policy_id, last, state, seconds)
  VALUES (1, 1, 'slow', 2, 1, true, 'running', 5);
INSERT INTO text (id, digest, body) VALUES (1, CAST('01' AS {bytes}), 'first text');
INSERT INTO text (id, digest, body) VALUES (2, CAST('02' AS {bytes}), 'second text');
INSERT INTO candidate (id, screen, key, digest, text_id)
  VALUES (1, 'papers', 'a', CAST('0a' AS {bytes}), 1);
INSERT INTO candidate (id, screen, key, digest, text_id)
  VALUES (2, 'papers', 'b', CAST('0b' AS {bytes}), 2);
INSERT INTO candidate (id, screen, key, digest, problem)
  VALUES (3, 'papers', 'c', CAST('0c' AS {bytes}), 'empty text');
INSERT INTO candidate_fields (candidate_id, fields) VALUES (1, '{"year": 2020}');
INSERT INTO candidate_fields (candidate_id, fields) VALUES (2, '{}');
INSERT INTO candidate_fields (candidate_id, fields) VALUES (3, '{}');
INSERT INTO verdict (run_id, candidate_id, position, outcome, ingest) VALUES (1, 1, 0, 'accept', 1);
INSERT INTO verdict (run_id, candidate_id, position, ingest) VALUES (1, 2, 1, 1);
INSERT INTO verdict (run_id, candidate_id, position, outcome, why, ingest)
  VALUES (1, 3, 0, 'review', 'empty text', 1);
INSERT INTO judgement (judge_id, text_id, run_id, score, reading, prompt_tokens, cached_tokens,
  completion_tokens, seconds, failed, judged_at)
  VALUES (1, 1, 1, 0.95, 'yes', 30, 20, 0, 0.1, false, '2026-01-02 03:04:05');
INSERT INTO judgement (judge_id, text_id, run_id, score, reading, prompt_tokens, cached_tokens,
  completion_tokens, seconds, failed, judged_at)
  VALUES (1, 2, 1, 0.5, 'yes', 30, 20, 0, 0.1, false, '2026-01-02 03:04:05');
INSERT INTO bad_row (id, run_id, source, line, reason, raw)
  VALUES (1, 1, 'papers.csv', 4, 'no key', ',x')
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    engine = open_engine(database_url)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def test_models_and_migrations_describe_one_schema(database_url, connection):
    command.upgrade(_config(connection), "head")
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    assert compare_metadata(context, Base.metadata) == []


def test_checks_of_the_models_are_in_the_database(connection):
    command.upgrade(_config(connection), "head")
    inspector = inspect(connection)
    for table in Base.metadata.sorted_tables:
        wanted = {c.name for c in table.constraints if str(c.name).startswith("ck_")}
        assert {c["name"] for c in inspector.get_check_constraints(table.name)} == wanted


def test_keys_are_compared_by_byte(connection):
    command.upgrade(_config(connection), "head")
    columns = {c["name"]: c["type"] for c in inspect(connection).get_columns("candidate")}
    collation = getattr(columns["key"], "collation", None)
    assert collation == ("C" if connection.dialect.name == "postgresql" else None)


def test_rows_of_the_first_revision_survive_all_later_ones(connection):
    command.upgrade(_config(connection), "0001")
    kind = "BLOB" if connection.dialect.name == "sqlite" else "bytea"
    for statement in FIRST_ROWS.replace("{bytes}", kind).split(";\n"):
        connection.exec_driver_sql(statement)
    command.upgrade(_config(connection), "head")

    def ask(sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.execute(text(sql))]

    assert ask("SELECT key, verdict, tier, score, why, text FROM result ORDER BY key") == [
        ("a", "accepted", "fast", 0.95, None, "first text"),
        ("b", "pending", "slow", None, None, "second text"),
        ("c", "review", "fast", None, "empty text", None),
    ]
    assert ask("SELECT tier, reached, judged, promoted FROM funnel ORDER BY position") == [
        ("fast", 3, 2, 1),
        ("slow", 1, 0, 0),
    ]
    assert ask("SELECT key, outcome FROM judgement_detail ORDER BY key") == [
        ("a", "accept"),
        ("b", "promote"),
    ]


def test_going_down_removes_everything(connection):
    command.upgrade(_config(connection), "head")
    command.downgrade(_config(connection), "base")
    inspector = inspect(connection)
    assert inspector.get_table_names() == ["alembic_version"]
    assert inspector.get_view_names() == []


def test_an_upgrade_that_fails_leaves_nothing_behind(database_url, monkeypatch):
    scripts = ScriptDirectory.from_config(_config())
    module = scripts.get_revision("0002").module
    broken = {**module.VIEWS, "funnel": "SELECT FROM WHERE"}
    monkeypatch.setattr(module, "VIEWS", broken)
    monkeypatch.setattr(ScriptDirectory, "from_config", lambda _config: scripts)
    with pytest.raises(Exception, match="syntax error"):
        upgrade(database_url)
    engine = open_engine(database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_two_processes_may_create_the_schema_at_once(database_url):
    faults: list[Exception] = []

    def create() -> None:
        try:
            check_ready(database_url)
        except Exception as error:  # noqa: BLE001
            faults.append(error)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
