"""What other thresholds would do, from stored scores: the run's own statements on copies of it.

Temporary tables named `verdict`, `run_tier`, `policy` and `audit` hide the real ones from this
connection until its transaction is rolled back, so that `db.verdicts` works on them as on those.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, text

from db import verdicts
from db.bulk import fresh_statistics, transaction
from db.engine import open_engine
from db.policies import Change
from tiers.types import Outcome

_STEPS = text("""
    SELECT position, outcome, COUNT(*) FROM verdict WHERE run_id = :run_id
    GROUP BY position, outcome
""")
_CURRENT = text("""
    SELECT run_tier.judge_id, policy.reject_below, policy.accept_above, policy.top_count,
      policy.top_share, policy.budget
    FROM run_tier JOIN policy ON policy.id = run_tier.policy_id
    WHERE run_tier.run_id = :run_id
    ORDER BY run_tier.position
""")
_AUDITED = text("SELECT COUNT(*) FROM audit WHERE run_id = :run_id")
_FLIPS = """
    SELECT candidate.key, before.outcome, run_tier.name, verdict.outcome, now.name
    FROM verdict
    JOIN {real}.verdict AS before
      ON before.run_id = :run_id AND before.candidate_id = verdict.candidate_id
    JOIN candidate ON candidate.id = verdict.candidate_id
    JOIN run_tier ON run_tier.position = before.position
    JOIN run_tier AS now ON now.position = verdict.position
    WHERE COALESCE(before.outcome, 'pending') <> COALESCE(verdict.outcome, 'pending')
    ORDER BY candidate.key
"""


class Step(NamedTuple):
    """What becomes of those who reach a tier."""

    tier: str
    reached: int
    promoted: int
    accepted: int
    rejected: int
    review: int
    failed: int
    pending: int
    """Of them, to be judged here first."""


class Flip(NamedTuple):
    """A candidate whose verdict would be another one."""

    key: str
    was: str
    at: str
    """The tier that decided."""
    would_be: str
    by: str


class Consequences(NamedTuple):
    """A run as it is, and as it would be."""

    before: list[Step]
    after: list[Step]
    flips: list[Flip]


def what_if(engine: Engine, run_id: int, changes: Mapping[int, Change]) -> Consequences:
    """The run under other thresholds, by position; nothing is changed and nobody is asked."""
    with _alone(engine) as connection:
        names = _tiers(connection, run_id)
        before = _counts(connection, run_id)
        moved = _moved(connection, run_id, changes)
        real = _hide(connection, run_id, moved)
        unmoved = before - _counts(connection, run_id)
        for position, change in changes.items():
            connection.execute(
                text(f"""
                    UPDATE policy SET {", ".join(f"{name} = :{name}" for name in change._fields)}
                    WHERE id = (SELECT policy_id FROM run_tier WHERE position = :position)
                """),  # noqa: S608 - names of ours
                {**change._asdict(), "position": position},
            )
        first = min(changes)
        verdicts.undecide(connection, run_id, first)
        fresh_statistics(connection, "verdict")
        verdicts.decide_from(connection, run_id, first, statistics=False)
        after = unmoved + _counts(connection, run_id)
        rows = connection.execute(text(_FLIPS.format(real=real)), {"run_id": run_id})
        flips = [
            Flip(key, _verdict(was), at, _verdict(would_be), by)
            for key, was, at, would_be, by in rows
        ]
    return Consequences(_steps(before, names), _steps(after, names), flips)


def _moved(connection: Connection, run_id: int, changes: Mapping[int, Change]) -> str:
    """Which candidates' scores lie where a threshold moves, as a condition on their ids.

    True for all of them where one candidate's verdict hangs on the others': where a tier ranks, or
    a share of the rejects is audited. At the last tier a threshold that comes or goes changes what
    becomes of all scores between.
    """
    tiers = connection.execute(_CURRENT, {"run_id": run_id}).all()
    ranked = any(tier.top_count or tier.top_share or tier.budget for tier in tiers[min(changes) :])
    if ranked or connection.scalar(_AUDITED, {"run_id": run_id}):
        return "TRUE"
    conditions = []
    for position, change in changes.items():
        tier = tiers[position]
        old = Change(tier.reject_below, tier.accept_above)
        kinds = [[value is None for value in each] for each in (old, change)]
        if tier.judge_id is None or (position == len(tiers) - 1 and kinds[0] != kinds[1]):
            return "TRUE"
        lows = sorted(each.reject_below or 0.0 for each in (old, change))
        highs = sorted(
            1.0 if each.accept_above is None else each.accept_above for each in (old, change)
        )
        conditions.append(
            "SELECT candidate.id FROM candidate JOIN judgement "  # noqa: S608 - numbers
            f"ON judgement.judge_id = {tier.judge_id:d} AND judgement.text_id = candidate.text_id "
            "WHERE ("
            f"(judgement.score >= {lows[0]!r} AND judgement.score < {lows[1]!r}) OR "
            f"(judgement.score > {highs[0]!r} AND judgement.score <= {highs[1]!r}))"
        )
    return f"candidate_id IN ({' UNION '.join(conditions)})"


def _hide(connection: Connection, run_id: int, moved: str) -> str:
    """Put copies before the tables that are going to change; return the real ones' schema."""
    sqlite = connection.dialect.name == "sqlite"
    real = "main" if sqlite else str(connection.scalar(text("SELECT current_schema()")))
    for table, part in (
        ("policy", f"id IN (SELECT policy_id FROM run_tier WHERE run_id = {run_id:d})"),  # noqa: S608
        ("run_tier", f"run_id = {run_id:d}"),
        ("verdict", f"run_id = {run_id:d} AND {moved}"),
        ("audit", f"run_id <= {run_id:d}"),
    ):
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE {table} AS "  # noqa: S608 - names of ours and a number
            f"SELECT * FROM {real}.{table} WHERE {part}"
        )
    return real


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A new connection that is thrown away, and its transaction rolled back.

    On one that is used again the copies would hide the tables for good; and on one that was used
    before, Postgres' prepared statements would still mean the real tables.
    """
    fresh = open_engine(engine.url.render_as_string(hide_password=False))
    try:
        with transaction(fresh, writes=False) as connection:
            yield connection
            current = connection.get_transaction()
            if current is not None:
                current.rollback()
    finally:
        fresh.dispose()


def _tiers(connection: Connection, run_id: int) -> list[str]:
    query = text("SELECT name FROM run_tier WHERE run_id = :run_id ORDER BY position")
    return list(connection.scalars(query, {"run_id": run_id}))


def _counts(connection: Connection, run_id: int) -> Counter[tuple[int, str]]:
    """Candidates by position and verdict."""
    rows = connection.execute(_STEPS, {"run_id": run_id})
    return Counter({(position, _verdict(outcome)): count for position, outcome, count in rows})


def _steps(counts: Counter[tuple[int, str]], names: list[str]) -> list[Step]:
    return [
        Step(
            name,
            _sum(counts, range(position, len(names))),
            _sum(counts, range(position + 1, len(names))),
            *(
                counts[position, verdict]
                for verdict in ("accepted", "rejected", "review", "failed", "pending")
            ),
        )
        for position, name in enumerate(names)
    ]


def _sum(counts: Counter[tuple[int, str]], positions: Iterable[int]) -> int:
    wanted = set(positions)
    return sum(count for (position, _), count in counts.items() if position in wanted)


def _verdict(outcome: Any) -> str:
    words = {Outcome.ACCEPT: "accepted", Outcome.REJECT: "rejected", None: "pending"}
    return words.get(outcome, str(outcome))
