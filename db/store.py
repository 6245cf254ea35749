"""Everything that is remembered goes in and comes out here, as plain values."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, select, text, true, update

from db import audits as audit
from db import candidates as ingest
from db import costs, locks, runs, verdicts
from db import deciding as decide
from db import judgements as judging
from db import results as reading
from db.audits import Audited, Audits
from db.batches import Batch, Batches
from db.bulk import storable, transaction
from db.errors import DatabaseError, InputRefused, StoreError
from db.labels import PEOPLE, Label, Labels, Scored, rubric_digest
from db.models import (
    BatchState,
    LabelSource,
    RunRow,
    RunState,
    RunTierRow,
    TierState,
)
from db.policies import Change, Policies, Version
from db.values import (
    Account,
    BadRow,
    Cost,
    Difference,
    Explanation,
    FunnelRow,
    Ingested,
    JudgementDetail,
    Row,
    Run,
    RunStatus,
    Spent,
    TierPlan,
)
from db.what_if import Consequences, Flip, Step, what_if
from tiers.types import Candidate, Judgement, Outcome

__all__ = [
    "PEOPLE",
    "Account",
    "Audited",
    "BadRow",
    "Batch",
    "BatchState",
    "Change",
    "Consequences",
    "Cost",
    "DatabaseError",
    "Difference",
    "Explanation",
    "Flip",
    "FunnelRow",
    "Ingested",
    "InputRefused",
    "JudgementDetail",
    "Label",
    "LabelSource",
    "Row",
    "Run",
    "RunState",
    "RunStatus",
    "Scored",
    "Spent",
    "Step",
    "Store",
    "StoreError",
    "TierPlan",
    "TierState",
    "Version",
    "rubric_digest",
]


class Store:
    """Memory of all runs of one database. Every method is one transaction.

    Raises (all methods):
        DatabaseError: the database is unreachable, full, locked or read-only.
        StoreError: what was asked cannot be done; the message says what to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.audits = Audits(engine)
        self.batches = Batches(engine)
        self.labels = Labels(engine)
        self.policies = Policies(engine)

    # Runs

    def open_run(
        self,
        screen: str,
        config: dict[str, Any],
        config_hash: str,
        tiers: Sequence[TierPlan],
        key: str | None = None,
    ) -> Run:
        """Find the run to work on, or add it; one that was there stays as it is until `resume`.

        Args:
            screen: name of the screen.
            config: the whole screen, for the record.
            config_hash: tells whether two runs compute the same.
            tiers: the cascade, in order.
            key: the run of this key; None for the newest unfinished run of this screen and
                configuration, and a new key where there is none.
        """
        with self._writing() as connection:
            found = runs.to_resume(connection, screen, config_hash, key)
            if found is None:
                run_id = runs.add(connection, screen, config, config_hash, key)
                runs.add_tiers(connection, run_id, tiers)
            else:
                run_id = found["id"]
            return runs.as_run(runs.get(connection, run_id))

    def to_resume(self, screen: str, config_hash: str, key: str | None = None) -> Run | None:
        """The run that `open_run` would find; None where it would begin one."""
        with self._reading() as connection:
            found = runs.to_resume(connection, screen, config_hash, key)
            return None if found is None else runs.as_run(found)

    def resume(self, run_id: int, config: dict[str, Any]) -> None:
        """Say that the run is worked on again, and by which settings; its lock is held."""
        with self._writing() as connection:
            runs.reopen(connection, run_id, config)

    def put_back(self, before: RunStatus) -> None:
        """Have a run stand as it stood before it was resumed."""
        with self._writing() as connection:
            runs.put_back(connection, before)

    def find_run(self, key: str | None = None) -> Run:
        """The run of this key; None for the newest."""
        with self._reading() as connection:
            return runs.as_run(runs.find(connection, key))

    def run_before(self, run: Run) -> Run:
        """The run of the same screen that was begun before this one.

        Raises:
            StoreError: there is none.
        """
        with self._reading() as connection:
            return runs.as_run(runs.before(connection, run))

    def runs(self, limit: int = 20) -> list[RunStatus]:
        """The newest runs first."""
        with self._reading() as connection:
            rows = connection.execute(runs.RUNS.order_by(RunRow.id.desc()).limit(limit)).mappings()
            return [runs.as_status(row, runs.account(connection, row["id"])) for row in rows.all()]

    def status(self, run_id: int) -> RunStatus:
        """One run and how it stands."""
        with self._reading() as connection:
            row = runs.get(connection, run_id)
            return runs.as_status(row, runs.account(connection, run_id))

    def set_flow_run(self, run_id: int, flow_run: str) -> None:
        """Remember which Prefect flow run works on this run."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow).where(RunRow.id == run_id).values(prefect_flow_run=flow_run)
            )

    def finish(
        self, run_id: int, state: RunState, reason: str | None = None, seconds: float = 0.0
    ) -> None:
        """Close an attempt at the run; `seconds` is what this attempt worked."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id)
                .values(
                    state=RunState(state),
                    reason=storable(reason),
                    finished_at=runs.now(),
                    seconds=RunRow.seconds + seconds,
                )
            )

    # Locks

    def lock(self, run_id: int, owner: str, seconds: float = 120) -> None:
        """Keep other flows off this run until `seconds` from now; `renew` in time."""
        with self._writing() as connection:
            locks.lock(connection, run_id, owner, seconds)

    def renew(self, run_id: int, owner: str, seconds: float = 120) -> None:
        """Hold the lock for longer; fails where somebody else took it meanwhile."""
        with self._writing() as connection:
            locks.renew(connection, run_id, owner, seconds)

    def unlock(self, run_id: int, owner: str) -> None:
        with self._writing() as connection:
            locks.unlock(connection, run_id, owner)

    # Ingest

    def start_ingest(self, run_id: int) -> None:
        """Begin to read the input from its start."""
        with self._writing() as connection:
            connection.execute(
                update(RunRow).where(RunRow.id == run_id).values(ingests=RunRow.ingests + 1)
            )

    def ingest(self, run_id: int, rows: Sequence[Row], source: str) -> Ingested:
        """Add one chunk of some thousand rows to the run's candidates.

        A row that is already there is left alone, so a resumed run reads its input again. An
        identical row met twice since `start_ingest` is a duplicate; another row with the same key
        becomes a bad row.
        """
        with self._writing() as connection:
            target = ingest.target(connection, run_id)
            return ingest.ingest(connection, target, rows, source)

    def add_bad_rows(self, run_id: int, rows: Sequence[BadRow]) -> None:
        with self._writing() as connection:
            ingest.add_bad_rows(connection, run_id, rows)

    def finish_ingest(
        self,
        run_id: int,
        rows_read: int,
        duplicates: int,
        *,
        whole: bool = True,
        allow_shrink: bool = False,
    ) -> int:
        """Close the reading of the input, and check that no row of it got lost.

        Args:
            run_id: the run.
            rows_read: all rows that were read, bad ones included.
            duplicates: those among them that `ingest` counted as duplicates.
            whole: whether all of the input was read: who was not met leaves the run.
            allow_shrink: whether more than half of the run may leave it.

        Returns:
            How many candidates left the run, those not counted whose content changed.

        Raises:
            InputRefused: more than half would leave it; `cancel_ingest` takes the reading back.
        """
        with self._writing() as connection:
            target = ingest.target(connection, run_id)
            gone = ingest.forget_gone(connection, target, whole=whole, allow_shrink=allow_shrink)
            ingest.check_conservation(connection, target, rows_read, duplicates)
            connection.execute(
                update(RunRow)
                .where(RunRow.id == run_id, true() if whole else RunRow.rows_read <= rows_read)
                .values(rows_read=rows_read, rows_duplicate=duplicates)
            )
            if connection.dialect.name == "postgresql":
                connection.execute(text("ANALYZE text, candidate, candidate_fields, verdict"))
            return gone

    def cancel_ingest(self, run_id: int) -> None:
        """Take back what was read since `start_ingest`: the run has the candidates of before."""
        with self._writing() as connection:
            ingest.take_back(connection, ingest.target(connection, run_id))

    # Tiers

    def set_judge(self, run_id: int, position: int, description: dict[str, Any]) -> int:
        """Say who judges at this tier; the same description gives the same id, in every run."""
        with self._writing() as connection:
            return runs.set_judge(connection, run_id, position, description)

    def judges(self, run_id: int) -> list[int | None]:
        """Who judges at each tier; None where nobody was asked yet."""
        query = select(RunTierRow.judge_id).where(RunTierRow.run_id == run_id)
        with self._reading() as connection:
            return list(connection.scalars(query.order_by(RunTierRow.position)))

    def set_tier_state(
        self,
        run_id: int,
        position: int,
        state: TierState,
        reason: str | None = None,
        seconds: float = 0.0,
        load_seconds: float | None = None,
        prompt_rate: float | None = None,
        decode_rate: float | None = None,
    ) -> None:
        """Say how the tier stands; `seconds` are added, None leaves a measurement as it was."""
        measured = {
            "load_seconds": load_seconds,
            "prompt_rate": prompt_rate,
            "decode_rate": decode_rate,
        }
        with self._writing() as connection:
            runs.set_tier_state(connection, run_id, position, state, reason, seconds, measured)

    def tier_reasons(self, run_id: int) -> list[str]:
        """Why tiers of the run stopped, in the order of the tiers."""
        with self._reading() as connection:
            return runs.tier_reasons(connection, run_id)

    # Costs

    def set_price(
        self, run_id: int, position: int, price: Sequence[float | str] | None
    ) -> int | None:
        """Say what a tier costs from now on, for `record`.

        Args:
            run_id: the run.
            position: the tier.
            price: (5,) dollars per million input, cached and output tokens, dollars an hour, and
                where the price stands; None where it is not known.
        """
        with self._writing() as connection:
            return costs.set_price(connection, run_id, position, price)

    def spent(self, run_id: int) -> list[Spent]:
        """What each tier of the run has used up, in the order of the tiers."""
        with self._reading() as connection:
            return costs.spent(connection, run_id)

    def mean_characters(self, run_id: int) -> float:
        """How long the run's texts are, judged by the first thousand."""
        with self._reading() as connection:
            return costs.mean_characters(connection, run_id)

    # Judging

    def unjudged(
        self, run_id: int, position: int, judge_id: int, after: int, limit: int
    ) -> list[Candidate]:
        """The next texts that wait at this tier without an answer; a broken answer is none.

        Args:
            run_id: the run.
            position: the tier.
            judge_id: who judges there.
            after: the last text id of the page before; 0 for the first page.
            limit: texts of a page.

        Returns:
            Texts by rising id, each once, under the ids that `record` expects.
        """
        with self._reading() as connection:
            rows = connection.execute(
                judging.UNJUDGED,
                {
                    "run_id": run_id,
                    "position": position,
                    "judge_id": judge_id,
                    "after": after,
                    "limit": limit,
                },
            )
            return [Candidate(*row) for row in rows]

    def count_unjudged(self, run_id: int, position: int, judge_id: int) -> int:
        """How many texts `unjudged` would give in all."""
        with self._reading() as connection:
            parameters = {"run_id": run_id, "position": position, "judge_id": judge_id}
            return int(connection.scalar(judging.COUNT_UNJUDGED, parameters) or 0)

    def record(
        self,
        run_id: int,
        judge_id: int,
        judgements: Sequence[Judgement],
        price_id: int | None = None,
    ) -> None:
        """Keep what the judge said, all or nothing; an answer that is there is kept as it was.

        Only a judgement that had failed is replaced. NaN becomes null, with an error. `price_id` is
        what `set_price` gave; None where the price is not known.
        """
        with self._writing() as connection:
            judging.record(connection, run_id, judge_id, judgements, price_id)

    def low_mass(
        self, judge_id: int, run_id: int, position: int, below: float = 0.5, sample: int = 256
    ) -> tuple[int, int, int]:
        """Of the tier's first texts: low `mass`, any mass, and not judged yet.

        Args:
            judge_id: who judges.
            run_id: the run.
            position: of the tier.
            below: a judgement with less mass is low.
            sample: how many texts are looked at.
        """
        parameters = {
            "judge_id": judge_id, "run_id": run_id, "position": position,
            "below": below, "sample": sample,
        }  # fmt: skip
        with self._reading() as connection:
            low, known, waiting = connection.execute(judging.LOW_MASS, parameters).one()
            return int(low), int(known), int(waiting)

    # Deciding

    def decide(self, run_id: int, position: int) -> dict[Outcome, int]:
        """Apply the tier's policy to the candidates that wait there and have a judgement.

        The same answer as `tiers.policy.outcomes` over all that the tier scored. A candidate that
        was decided before keeps its outcome, and its place in the ranking of `top`.

        Returns:
            How many candidates this call gave each outcome.
        """
        with self._writing() as connection:
            return decide.decide(connection, run_id, position)

    def set_affordable(self, run_id: int, position: int, count: int) -> None:
        """Say how many candidates the next tier's budget pays for, for the policy `budget`."""
        with self._writing() as connection:
            connection.execute(
                update(RunTierRow)
                .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
                .values(affordable=count)
            )

    def undecide(self, run_id: int, position: int = 0) -> None:
        """Take all that came to a tier back to it, to decide anew from the stored scores.

        `top` has to rank again when candidates have come in or failed ones are judged after all.
        """
        with self._writing() as connection:
            verdicts.undecide(connection, run_id, position)

    def redecide(self, run_id: int, position: int = 0) -> None:
        """Decide anew from a tier on, as far as there are judgements."""
        with self._writing() as connection:
            verdicts.undecide(connection, run_id, position)
            audit.decide_from(connection, run_id, position, decide.decide)

    def what_if(self, run_id: int, changes: Mapping[int, Change]) -> Consequences:
        """The run under other thresholds, by position; nothing is changed and nobody is asked."""
        return what_if(self._engine, run_id, changes)

    # Reading

    def account(self, run_id: int) -> Account:
        """Where the run's candidates are.

        Raises:
            StoreError: they do not add up; then the database was changed by hand.
        """
        with self._reading() as connection:
            return runs.account(connection, run_id)

    def funnel(self, run_id: int) -> list[FunnelRow]:
        with self._reading() as connection:
            return reading.funnel(connection, run_id)

    def costs(self, run_id: int) -> list[Cost]:
        """What each tier's answers took, whichever run paid for them."""
        with self._reading() as connection:
            return reading.costs(connection, run_id)

    def results(
        self,
        run_id: int,
        verdict: str | None = None,
        *,
        limit: int | None = None,
        fields: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Every candidate by rising key, read as it is used.

        Args:
            run_id: the run.
            verdict: accepted, rejected, review, failed or pending; None for all.
            limit: only so many.
            fields: with the record as it was read.

        Yields:
            key, verdict, tier, score, why, `<tier>_score` and `<tier>_reading` of each tier, and
            `fields` where they are asked for.
        """
        with self._reading() as connection:
            yield from reading.results(connection, run_id, verdict, limit, fields=fields)

    def field_names(self, run_id: int) -> list[str]:
        """The columns of the run's input."""
        with self._reading() as connection:
            return reading.field_names(connection, run_id)

    def differences(self, before: int, after: int) -> Iterator[Difference]:
        """Candidates that two runs do not agree about, by rising key, read as they are used."""
        with self._reading() as connection:
            yield from reading.differences(connection, before, after)

    def explain(self, run_id: int, key: str) -> Explanation:
        """Everything about one candidate of the run."""
        with self._reading() as connection:
            return reading.explain(connection, run_id, key)

    def _reading(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine, writes=False)

    def _writing(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine, writes=True)
