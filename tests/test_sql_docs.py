"""Every query of docs/sql.md is run, and every column of a view is described there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, inspect, text

from db.engine import check_ready, open_engine
from db.store import BadRow, RunState, Store
from tests.project import tier_by
from tests.test_store import FAST, SLOW, ingested, judge_all, rows, waiting
from tiers.types import Judgement

ROOT = Path(__file__).parents[1]
MIGRATIONS = ROOT / "migrations" / "versions"
DOCUMENT = (ROOT / "docs" / "sql.md").read_text()


class Query(NamedTuple):
    question: str
    dialect: str
    """Empty for one that both databases understand."""
    sql: str


def queries() -> Iterator[Query]:
    question = ""
    parts = re.split(r"```sql\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    for prose, sql in zip(parts[::2], parts[1::2], strict=False):
        question = prose.strip().rpartition("\n")[2] or question
        variant = re.match(r"-- (SQLite|Postgres)\n", sql)
        yield Query(question, variant[1] if variant else "", sql)


QUERIES = list(queries())
DIALECTS = {"sqlite": "SQLite", "postgresql": "Postgres"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def screened(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Two runs with every verdict in them; in the second, the bar is higher."""
    url = str(request.getfixturevalue(f"{request.param}_url"))
    check_ready(url)
    engine = open_engine(url)
    store = Store(engine)
    strict = tier_by("fast", 0.6)
    for plans in ([FAST, SLOW], [strict, SLOW]):
        run = ingested(store, [*rows(20), rows(21)[20]._replace(text="")], tiers=plans)
        store.candidates.add_bad(run.id, [BadRow("papers.csv", 22, "no key", ",x")])
        judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
        texts = waiting(store, run, 0, judge)
        tokens = {"prompt_tokens": 30, "cached_tokens": 20}
        answers = [Judgement(c.id, i / 20, "yes", **tokens) for i, c in enumerate(texts)]
        store.judgements.record(run.id, judge, answers)
        store.verdicts.decide(run.id, 0)
        judge_all(store, run, position=1, model="large", score=0.9)
        store.verdicts.decide(run.id, 1)
        store.runs.finish(run.id, RunState.DONE)
    with engine.begin() as connection:  # as an audit leaves it
        connection.exec_driver_sql(
            "INSERT INTO audit (run_id, candidate_id, position, drawn, found) SELECT run_id, "
            "candidate_id, position, true, false FROM verdict WHERE outcome = 'reject'"
        )
    yield engine
    engine.dispose()


def test_every_query_answers_something(screened):
    mine = DIALECTS[screened.dialect.name]
    with screened.connect() as connection:
        for query in QUERIES:
            if query.dialect in ("", mine):
                assert connection.exec_driver_sql(query.sql).all(), query.question


def test_there_are_ten_questions_and_each_has_an_answer_on_both_databases():
    dialects: dict[str, set[str]] = {}
    for query in QUERIES:
        dialects.setdefault(query.question, set()).add(query.dialect)
    assert len(dialects) >= 10
    assert all(found in ({""}, set(DIALECTS.values())) for found in dialects.values()), dialects


@pytest.mark.parametrize("view", ["result", "funnel", "judgement_detail"])
def test_every_column_of_a_view_is_described(screened, view):
    section = DOCUMENT.partition(f"### {view}\n")[2].partition("\n#")[0]
    described = re.findall(r"^\| `(\w+)` \| .+ \|$", section, flags=re.MULTILINE)
    actual = [column["name"] for column in inspect(screened).get_columns(view)]
    assert described == actual


def test_the_words_for_verdicts_are_those_of_the_view(screened):
    line = re.search(r"^\| `verdict` \| (.+) \|$", DOCUMENT, flags=re.MULTILINE)
    described = set(re.findall(r"`(\w+)`", line[1] if line else ""))
    with screened.connect() as connection:
        found = set(connection.scalars(text("SELECT DISTINCT verdict FROM result")))
    assert found == {"accepted", "rejected", "review"} <= described
    migration = (MIGRATIONS / "0001_spine.py").read_text()
    assert all(f"'{word}'" in migration for word in described)
