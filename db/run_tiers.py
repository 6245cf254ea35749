"""The tiers of a run: who judges there, how far each is, what it costs."""

import hashlib
import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, func, insert, select, text, update

from db.bulk import Noun, now, storable, upsert
from db.errors import StoreError
from db.models import JudgeRow, PriceRow, RunRow, RunTierRow, TierState
from tiers.types import Price

# A tier whose judge changed after it decided would mix the scores of two judges.
_DECIDED = text("""
    SELECT COUNT(*)
    FROM verdict
    JOIN candidate ON candidate.id = verdict.candidate_id
    WHERE verdict.run_id = :run_id
      AND candidate.problem IS NULL
      AND (verdict.position > :position
        OR (verdict.position = :position AND verdict.outcome IN ('accept', 'reject', 'review')))
""")
# As the view `funnel` has it, without the candidates: this is asked often.
_SPENT = text("""
    SELECT run_tier.position,
      COALESCE(SUM(judgement.prompt_tokens + judgement.completion_tokens), 0) AS tokens,
      COALESCE(SUM(((judgement.prompt_tokens - judgement.cached_tokens) * price.input
        + judgement.cached_tokens * price.cached_input
        + judgement.completion_tokens * price.output) / 1000000), 0.0) AS usd,
      COUNT(judgement.text_id) - COUNT(price.id) AS unpriced,
      run_tier.seconds AS seconds,
      COALESCE(MAX(now.hour), 0.0) AS usd_an_hour,
      COUNT(judgement.text_id) AS judged
    FROM run_tier
    LEFT JOIN price AS now ON now.id = run_tier.price_id
    LEFT JOIN judgement
      ON judgement.run_id = run_tier.run_id AND judgement.judge_id = run_tier.judge_id
    LEFT JOIN price ON price.id = judgement.price_id
    WHERE run_tier.run_id = :run_id
    GROUP BY run_tier.position, run_tier.seconds
    ORDER BY run_tier.position
""")


class Spent(NamedTuple):
    """What a tier of a run has used up so far."""

    tokens: int
    """Of prompts and replies."""
    usd: float | None
    """None where a price is not known."""
    seconds: float
    judged: int


class RunTiers(Noun):
    """The tiers of all runs, by run and position."""

    def set_judge(self, run_id: int, position: int, description: dict[str, Any]) -> int:
        """Say who judges at this tier; the same description gives the same id, in every run.

        Raises:
            StoreError: candidates of this run went past the tier under another judge.
        """
        canonical = _canonical(description)
        digest = judge_digest(description)
        with self._writing() as connection:
            connection.execute(
                upsert(connection, JudgeRow)
                .values(digest=digest, description=canonical)
                .on_conflict_do_nothing(index_elements=["digest"])
            )
            found = select(JudgeRow.id).where(JudgeRow.digest == digest)
            judge_id = connection.scalars(found).one()
            _check_same_judge(connection, run_id, position, judge_id)
            _set(connection, run_id, position, judge_id=judge_id)
            return judge_id

    def judges(self, run_id: int) -> list[int | None]:
        """Who judges at each tier; None where nobody was asked yet."""
        query = select(RunTierRow.judge_id).where(RunTierRow.run_id == run_id)
        with self._reading() as connection:
            return list(connection.scalars(query.order_by(RunTierRow.position)))

    def digests(self, run_id: int) -> list[str]:
        """The digest of each tier's judge, as `judge_digest` gives it."""
        query = (
            select(JudgeRow.digest)
            .join(RunTierRow, RunTierRow.judge_id == JudgeRow.id)
            .where(RunTierRow.run_id == run_id)
        )
        with self._reading() as connection:
            return list(connection.scalars(query.order_by(RunTierRow.position)))

    def set_state(
        self,
        run_id: int,
        position: int,
        state: TierState,
        reason: str | None = None,
        seconds: float = 0.0,
        attempt: int | None = None,
        **measured: float | None,
    ) -> None:
        """Say how the tier stands.

        Args:
            run_id: the run.
            position: the tier.
            state: how it stands.
            reason: why it stopped.
            seconds: of work, added to those before.
            attempt: who says so; nothing is written once another attempt has begun.
            measured: load_seconds, prompt_rate and decode_rate; None leaves one as it was.
        """
        over = TierState(state) in {TierState.DONE, TierState.STOPPED}
        values: dict[str, Any] = {
            "state": TierState(state),
            "reason": storable(reason),
            "seconds": RunTierRow.seconds + seconds,
            "finished_at": now() if over else None,
            **{name: value for name, value in measured.items() if value is not None},
        }
        if state == TierState.RUNNING:
            values["started_at"] = func.coalesce(RunTierRow.started_at, now())
        with self._writing() as connection:
            if attempt in (None, connection.scalar(_attempt(run_id))):
                _set(connection, run_id, position, **values)

    def reasons(self, run_id: int) -> list[str]:
        """Why tiers of the run stopped, in the order of the tiers."""
        query = (
            select(RunTierRow.reason)
            .where(RunTierRow.run_id == run_id, RunTierRow.state == TierState.STOPPED)
            .order_by(RunTierRow.position)
        )
        with self._reading() as connection:
            return [reason for reason in connection.scalars(query) if reason]

    def set_price(self, run_id: int, position: int, price: Price | None) -> int | None:
        """Say what a tier costs from now on; the id of the price, for `judgements.record`.

        Args:
            run_id: the run.
            position: the tier.
            price: None where it is not known.
        """
        with self._writing() as connection:
            price_id = None if price is None else _price_id(connection, price)
            _set(connection, run_id, position, price_id=price_id)
            return price_id

    def spent(self, run_id: int) -> list[Spent]:
        """What each tier of the run has used up, in the order of the tiers."""
        with self._reading() as connection:
            return [
                Spent(
                    int(row.tokens),
                    None if row.unpriced else float(row.usd) + row.seconds * row.usd_an_hour / 3600,
                    row.seconds,
                    row.judged,
                )
                for row in connection.execute(_SPENT, {"run_id": run_id})
            ]

    def set_affordable(self, run_id: int, position: int, count: int) -> None:
        """Say how many candidates the next tier's budget pays for, for the policy `budget`."""
        with self._writing() as connection:
            _set(connection, run_id, position, affordable=count)


def judge_digest(description: dict[str, Any]) -> str:
    """Names a judge: SHA-256 of its description in canonical JSON, hexadecimal."""
    return hashlib.sha256(_canonical(description).encode()).hexdigest()


def _canonical(description: dict[str, Any]) -> str:
    return json.dumps(description, sort_keys=True, separators=(",", ":"))


def count_tiers(connection: Connection, run_id: int) -> int:
    """How many tiers the run has."""
    query = select(func.count()).where(RunTierRow.run_id == run_id)
    return connection.scalar(query.select_from(RunTierRow)) or 0


def _set(connection: Connection, run_id: int, position: int, **values: Any) -> None:
    connection.execute(
        update(RunTierRow)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
        .values(values)
    )


def _attempt(run_id: int) -> Select[tuple[int]]:
    """The run's attempt; nobody begins another one before this transaction ends."""
    return select(RunRow.attempt).where(RunRow.id == run_id).with_for_update(read=True)


def _price_id(connection: Connection, price: Price) -> int:
    """Equal prices are one row."""
    values = price._asdict()
    same = [getattr(PriceRow, name) == value for name, value in values.items()]
    found = connection.scalar(select(PriceRow.id).where(*same).limit(1))
    if found is None:
        added = insert(PriceRow).values(values).returning(PriceRow.id)
        found = connection.execute(added).scalar_one()
    return found


def _check_same_judge(connection: Connection, run_id: int, position: int, judge_id: int) -> None:
    """Refuse another judge than the one by whose scores this tier has decided already.

    Raises:
        StoreError: candidates of this run went past the tier under another judge.
    """
    earlier, name = connection.execute(
        select(RunTierRow.judge_id, RunTierRow.name).where(
            RunTierRow.run_id == run_id, RunTierRow.position == position
        )
    ).one()
    if earlier in (None, judge_id):
        return
    decided = connection.scalar(_DECIDED, {"run_id": run_id, "position": position})
    if decided:
        raise StoreError(
            f"tier '{name}' has decided {decided:,} candidates by another judge (model, rubric, "
            "engine or settings differ: see table judge); start a new run, or go back to that one"
        )
