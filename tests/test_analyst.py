"""The role for analysts of docs/security.md, on a real Postgres: it reads all, and changes nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from db.engine import check_ready, open_engine
from db.query import ask
from db.store import Store
from tests.test_store import FAST, SLOW, ingested, rows

pytestmark = pytest.mark.postgres
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
# Both workers ask one server, whose roles are everybody's.
ROLE = f"analyst_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
[SCRIPT] = (
    re.sub(r"\banalyst\b", ROLE, found)
    for found in re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)
)

WRITES = [
    "DELETE FROM verdict",
    "UPDATE policy SET reject_below = 0",
    "INSERT INTO approval DEFAULT VALUES",
    "TRUNCATE run CASCADE",
    "DROP VIEW result",
    "CREATE TABLE mine (a int)",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    f"ALTER ROLE {ROLE} SUPERUSER",
    "SET ROLE postgres",
    "COPY run TO '/tmp/x'",
    "COPY run TO PROGRAM 'id'",
    "SELECT pg_read_file('/etc/hostname')",
    "SELECT lo_create(0), lo_import('/etc/hostname')",
]


@pytest.fixture
def owner(postgres_url: str) -> Iterator[Engine]:
    check_ready(postgres_url)
    engine = open_engine(postgres_url)
    ingested(Store(engine), rows(3), tiers=[FAST, SLOW])
    with engine.begin() as connection:
        for statement in SCRIPT.split(";\n"):
            connection.execute(text(statement)) if statement.strip() else None
    yield engine
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {ROLE}"))
        connection.execute(text(f"DROP ROLE {ROLE}"))
    engine.dispose()


@pytest.fixture
def analyst(owner: Engine) -> str:
    url = owner.url.set(drivername="postgresql", username=ROLE, password="change me")
    return url.render_as_string(hide_password=False)


def test_an_analyst_reads_what_there_is_and_what_a_migration_brings(owner, analyst):
    assert ask(analyst, "SELECT count(*) AS n FROM result") == [{"n": 3}]
    with owner.begin() as connection:
        connection.execute(text("CREATE TABLE later (a int)"))
        connection.execute(text("CREATE VIEW later_view AS SELECT * FROM later"))
    assert ask(analyst, "SELECT count(*) AS n FROM later_view, later") == [{"n": 0}]


@pytest.mark.parametrize("command", [["status"], ["results", "--no-fields"], ["sql", "SELECT 1 AS a FROM run"]])  # fmt: skip
def test_commands_that_read_work_with_this_user(analyst, tmp_path, command):
    told = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command, "--database", analyst],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr


def test_an_analyst_changes_nothing_not_even_when_writing_is_switched_on(owner, analyst):
    engine = create_engine(make_url(analyst).set(drivername="postgresql+psycopg"))
    for switch in ("", "SET default_transaction_read_only = off"):
        for statement in WRITES:
            with engine.connect() as connection:
                if switch:
                    connection.execute(text(switch))
                    connection.commit()
                with pytest.raises(
                    DBAPIError, match=r"denied|read-only|must be owner|[Oo]nly roles"
                ):
                    connection.execute(text(statement))
    engine.dispose()
    assert ask(analyst, "SELECT count(*) AS n FROM result") == [{"n": 3}]
