"""The tables. Rows carry small integers inside; the user's keys stay at the edge."""

import enum
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tiers.types import Outcome


class RunState(enum.StrEnum):
    """How a run stands; all but `done` and `alarm` can be taken up again."""

    RUNNING = "running"
    DONE = "done"
    ALARM = "alarm"
    """Done, and its audits say that its thresholds no longer keep their promise."""
    INCOMPLETE = "incomplete"
    WAITING = "waiting"
    """For a batch that a server works on; nobody holds the run meanwhile."""
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    """A person asked for it; `tamis resume` goes on."""
    INTERRUPTED = "interrupted"
    """Its process is gone. Often the table still says `running`."""


class TierState(enum.StrEnum):
    """How a tier of a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"


class BatchState(enum.StrEnum):
    """How far a batch of requests is."""

    PREPARED = "prepared"
    """Written here, perhaps already known to the server: looked for there before it is sent."""
    SUBMITTED = "submitted"
    ENDED = "ended"
    """The server is done with it, well or not; its answers wait there."""
    COLLECTED = "collected"


class LabelSource(enum.StrEnum):
    """Who says what is true."""

    TIER = "tier"
    PERSON = "person"
    ACTIVE = "active"
    """A person, asked in an order that is not random: it trains a classifier and certifies nothing.
    """


class ClassifierState(enum.StrEnum):
    """How a version of a classifier stands."""

    TRIAL = "trial"
    """Nothing is certified yet."""
    ADMITTED = "admitted"
    REFUSED = "refused"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on both databases: SQLite would give them back without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _names(states: type[enum.StrEnum]) -> Enum:
    return Enum(states, native_enum=False, length=16, values_callable=list)


# SQLite numbers rows only in a column declared INTEGER.
_Big = BigInteger().with_variant(Integer, "sqlite")
# Equal scores are ranked by key: byte order, which is SQLite's and Python's own.
_Key = Text().with_variant(Text(collation="C"), "postgresql")

Id = Annotated[int, mapped_column(primary_key=True)]
BigId = Annotated[int, mapped_column(_Big, primary_key=True)]


class Base(DeclarativeBase):
    """Named constraints, because Alembic cannot drop a nameless one on SQLite."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        float: Double(),
        bytes: LargeBinary(),
        datetime: UtcDateTime(),
        RunState: _names(RunState),
        TierState: _names(TierState),
        BatchState: _names(BatchState),
        LabelSource: _names(LabelSource),
        ClassifierState: _names(ClassifierState),
        Outcome: _names(Outcome),
    }


class RunRow(Base):
    """One execution of a screen over its candidates."""

    __tablename__ = "run"

    id: Mapped[Id]
    key: Mapped[str] = mapped_column(unique=True)
    screen: Mapped[str] = mapped_column(index=True)
    config: Mapped[str]
    """The whole screen as JSON."""
    config_hash: Mapped[str]
    state: Mapped[RunState]
    reason: Mapped[str | None]
    """Why it stopped."""
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    seconds: Mapped[float] = mapped_column(default=0.0)
    """Working time, added up over all resumes."""
    ingests: Mapped[int] = mapped_column(default=0)
    """How many times its input was read from the start."""
    rows_read: Mapped[int] = mapped_column(default=0)
    rows_duplicate: Mapped[int] = mapped_column(default=0)
    """Rows identical to an earlier one, dropped."""
    lock_owner: Mapped[str | None]
    lock_until: Mapped[datetime | None]
    """By the clock of the database."""
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """How often the lock was taken; who holds an earlier number writes no state any more."""
    pause_attempt: Mapped[int | None]
    """The attempt that is asked to end as paused; a later one was not asked."""
    kind: Mapped[str] = mapped_column(server_default="screen")
    """`screen`, or `pilot` for a sample that was measured, which decides nothing."""


class TextRow(Base):
    """A text that judges read: stored and judged once, however many candidates have it."""

    __tablename__ = "text"

    id: Mapped[BigId]
    digest: Mapped[bytes] = mapped_column(unique=True)
    body: Mapped[str]


class CandidateRow(Base):
    """One record of a screen. Narrow, because promotion joins it and must not drag text along."""

    __tablename__ = "candidate"
    __table_args__ = (
        UniqueConstraint("screen", "key", "digest"),
        CheckConstraint("(text_id IS NULL) <> (problem IS NULL)", name="text_or_problem"),
    )

    id: Mapped[BigId]
    screen: Mapped[str]
    key: Mapped[str] = mapped_column(_Key)
    digest: Mapped[bytes]
    text_id: Mapped[int | None] = mapped_column(_Big, ForeignKey("text.id"), index=True)
    problem: Mapped[str | None]
    """Why it cannot be judged; then it has no text."""


class CandidateFieldsRow(Base):
    """The record as read, in JSON; the view `candidate_record` has it whole."""

    __tablename__ = "candidate_fields"

    candidate_id: Mapped[int] = mapped_column(
        _Big, ForeignKey("candidate.id"), primary_key=True, autoincrement=False
    )
    fields: Mapped[str]
    """Without the long values that stand in the text: see `db.records`."""
    from_text: Mapped[str | None]
    """Where those stand; null where `fields` are the whole record, as all were before 0008."""


class JudgeRow(Base):
    """Who judges: rubric, prompt layout, model, engine, version, settings."""

    __tablename__ = "judge"

    id: Mapped[Id]
    digest: Mapped[str] = mapped_column(unique=True)
    """SHA-256 of `description` in canonical JSON, hexadecimal."""
    description: Mapped[str]


class PolicyRow(Base):
    """One version of a tier's policy; never changed, so that a decision can be explained."""

    __tablename__ = "policy"

    id: Mapped[Id]
    reject_below: Mapped[float | None]
    accept_above: Mapped[float | None]
    top_count: Mapped[int | None]
    top_share: Mapped[float | None]
    budget: Mapped[bool] = mapped_column(server_default=false())
    """As many as the next tier's budget pays for; `run_tier.affordable` says how many."""
    created_at: Mapped[datetime]
    author: Mapped[str | None]
    reason: Mapped[str | None]
    run_id: Mapped[int | None] = mapped_column(index=True)
    """The run for which it was made, and the tier; another run may take it over."""
    position: Mapped[int | None]
    follows: Mapped[str | None]
    """Whose labels go before the score: `people`, or a tier's name as reviewer; null for none."""
    certificate: Mapped[str | None]
    """What it promises and why, as JSON; null for a policy that promises nothing."""


class ApprovalRow(Base):
    """What a person said of certified thresholds; the newest word on a certificate counts."""

    __tablename__ = "approval"

    id: Mapped[Id]
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    digest: Mapped[str]
    """SHA-256 of what the certificate says, hexadecimal: the word is about this one alone."""
    approved: Mapped[bool]
    author: Mapped[str]
    reason: Mapped[str]
    created_at: Mapped[datetime]


class PriceRow(Base):
    """A price at which tokens or machines were paid; never changed, so that costs stay right."""

    __tablename__ = "price"

    id: Mapped[Id]
    input: Mapped[float]
    """US dollars per million tokens, as the next two."""
    cached_input: Mapped[float]
    output: Mapped[float]
    hour: Mapped[float]
    """US dollars for an hour of all machines of the tier."""
    source: Mapped[str]


class RunTierRow(Base):
    """One tier of one run: who judged, under which policy, how far it is."""

    __tablename__ = "run_tier"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    judge_id: Mapped[int | None] = mapped_column(ForeignKey("judge.id"))
    policy_id: Mapped[int | None] = mapped_column(ForeignKey("policy.id"))
    last: Mapped[bool]
    state: Mapped[TierState]
    reason: Mapped[str | None]
    seconds: Mapped[float] = mapped_column(default=0.0)
    """Working time, added up over all resumes."""
    load_seconds: Mapped[float | None]
    prompt_rate: Mapped[float | None]
    """Tokens of prompts read a second."""
    decode_rate: Mapped[float | None]
    """Tokens of answers written a second."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    price_id: Mapped[int | None]
    """What the tier costs now; a judgement keeps the price at which it was paid."""
    affordable: Mapped[int | None]
    """How many the policy `budget` let through last."""


class JudgementRow(Base):
    """What one judge said about one text. The key is the promise that nothing is paid for twice."""

    __tablename__ = "judgement"
    __table_args__ = (
        CheckConstraint("score BETWEEN 0 AND 1", name="score_is_probability"),
        Index(None, "run_id", "judge_id"),
        {"sqlite_with_rowid": False},
    )

    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"), primary_key=True)
    text_id: Mapped[int] = mapped_column(_Big, ForeignKey("text.id"), primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    """The run that paid for it."""
    score: Mapped[float | None]
    """Null where the judge gave no readable answer; `error` then says why."""
    reading: Mapped[str | None]
    mass: Mapped[float | None]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    seconds: Mapped[float]
    error: Mapped[str | None]
    failed: Mapped[bool]
    """The judge broke, not the candidate: the next attempt asks again."""
    note: Mapped[str | None]
    judged_at: Mapped[datetime]
    """When its batch was written."""
    reasoning_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    """Of the completion's."""
    price_id: Mapped[int | None]
    """Null where the price was not known, or the server told no tokens. No foreign key, because
    SQLite could never drop the column again."""
    address_id: Mapped[int | None]
    """The server that gave it; null where there was none to choose."""


class AddressRow(Base):
    """An address of a tier that asks servers, as the process that works on the run last told."""

    __tablename__ = "address"
    __table_args__ = (UniqueConstraint("run_id", "position", "url"),)

    id: Mapped[Id]
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    position: Mapped[int]
    url: Mapped[str]
    state: Mapped[str]
    """As in `tiers.types.Health`."""
    since: Mapped[datetime]
    """When it came to be so, by the clock of the machine that works on the run."""
    in_flight: Mapped[int]
    error: Mapped[str | None]
    """The last one, however long ago."""


class BatchRow(Base):
    """A file of requests that a server answers by tomorrow."""

    __tablename__ = "batch"

    id: Mapped[Id]
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    position: Mapped[int]
    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"))
    price_id: Mapped[int | None]
    mark: Mapped[str] = mapped_column(unique=True)
    """Sent along, to find a batch again that was made just before we died."""
    server: Mapped[str]
    key_fingerprint: Mapped[str]
    """The start of the key's SHA-256: another account does not see this batch."""
    remote_id: Mapped[str | None]
    input_file: Mapped[str | None]
    output_file: Mapped[str | None]
    error_file: Mapped[str | None]
    state: Mapped[BatchState]
    remote_state: Mapped[str | None]
    """The server's own word: validating, in_progress, completed, expired and so on."""
    reason: Mapped[str | None]
    lines: Mapped[int]
    tokens: Mapped[int]
    """About how many tokens it has the server hold."""
    answered: Mapped[int] = mapped_column(default=0)
    unanswered: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    collected_at: Mapped[datetime | None]


class BatchLineRow(Base):
    """A text in a batch: not to be sent again while the batch is open."""

    __tablename__ = "batch_line"
    __table_args__ = ({"sqlite_with_rowid": False},)

    batch_id: Mapped[int] = mapped_column(ForeignKey("batch.id"), primary_key=True)
    text_id: Mapped[int] = mapped_column(_Big, ForeignKey("text.id"), primary_key=True, index=True)


class LabelRow(Base):
    """The truth about a text under a rubric, as one reviewer told it."""

    __tablename__ = "label"
    __table_args__ = ({"sqlite_with_rowid": False},)

    rubric: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the rubric, hexadecimal: another question has other answers."""
    text_id: Mapped[int] = mapped_column(_Big, ForeignKey("text.id"), primary_key=True)
    source: Mapped[LabelSource] = mapped_column(primary_key=True)
    reviewer: Mapped[str] = mapped_column(primary_key=True)
    """A person's name; or the tier's, its judge and its policy."""
    answer: Mapped[bool | None]
    """Null where the reviewer could not tell."""
    told_at: Mapped[datetime]


class CalibratedRow(Base):
    """A candidate that a certificate is about; the certificate holds the digest of them all."""

    __tablename__ = "calibrated"
    __table_args__ = ({"sqlite_with_rowid": False},)

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    """SHA-256 of their keys and texts: runs and certificates about the same ones share rows."""
    candidate_id: Mapped[int] = mapped_column(_Big, ForeignKey("candidate.id"), primary_key=True)


class VerdictRow(Base):
    """Where a candidate of a run is, or was decided; promoted means one position further."""

    __tablename__ = "verdict"
    __table_args__ = ({"sqlite_with_rowid": False},)

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(_Big, ForeignKey("candidate.id"), primary_key=True)
    position: Mapped[int]
    outcome: Mapped[Outcome | None]
    """Null while pending; never `promote`."""
    why: Mapped[str | None]
    ingest: Mapped[int]
    """The last of the run's `ingests` that met this candidate: tells a duplicate from a re-read."""
    since: Mapped[int] = mapped_column(server_default=text("0"))
    """The one with which it came, so that a reading can be taken back."""


class AuditRow(Base):
    """A candidate that a tier rejected and that the last tier was asked about all the same."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_with_rowid": False},)

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(_Big, ForeignKey("candidate.id"), primary_key=True)
    position: Mapped[int]
    """Of the tier that rejected it."""
    drawn: Mapped[bool]
    """By lot, in this run; false for one that an earlier run's audit had found."""
    found: Mapped[bool | None]
    """Whether the last tier did not reject it; null while it has not answered, or cannot."""


class BadRowRow(Base):
    """A row of input that could not become a candidate; the run counts it as failed."""

    __tablename__ = "bad_row"

    id: Mapped[BigId]
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    source: Mapped[str]
    line: Mapped[int]
    reason: Mapped[str]
    raw: Mapped[str]
    """Cut to 2,000 characters."""
    ingest: Mapped[int] = mapped_column(server_default=text("0"))
    """The one of the run's `ingests` that met it."""


class QuoteRow(Base):
    """Where a quote of a judge's reply stands in the text that was judged."""

    __tablename__ = "quote"

    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"), primary_key=True)
    text_id: Mapped[int] = mapped_column(_Big, ForeignKey("text.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """Of the quote in the reply, from 0."""
    occurrence: Mapped[int] = mapped_column(primary_key=True)
    """Of the quote in the text, from 0."""
    field: Mapped[str]
    quote: Mapped[str]
    start: Mapped[int | None]
    """In characters of the text; null where the quote does not stand in it."""
    stop: Mapped[int | None]


class BenchmarkRow(Base):
    """How a tier did at one setting on one machine: what `tamis bench` measured or took over."""

    __tablename__ = "benchmark"

    id: Mapped[Id]
    measured_at: Mapped[datetime]
    machine: Mapped[str]
    source: Mapped[str]
    """`tamis`, or the tool whose file was imported."""
    screen: Mapped[str] = mapped_column(index=True)
    tier: Mapped[str]
    model: Mapped[str]
    candidates: Mapped[int]
    """How many were judged for it."""
    batch_size: Mapped[int | None]
    """Candidates that were handed over at once."""
    concurrency: Mapped[int | None]
    """Requests or replies under way; null where one stream reads all."""
    rate: Mapped[float | None]
    """Candidates a second."""
    p50: Mapped[float | None]
    """Seconds from handing a candidate over to its answer, as the next two."""
    p95: Mapped[float | None]
    p99: Mapped[float | None]
    first_token: Mapped[float | None]
    """Seconds to the first token of a candidate that is asked alone."""
    prefill_rate: Mapped[float | None]
    """Tokens read a second, those of the cache left out."""
    decode_rate: Mapped[float | None]
    """Tokens written a second."""
    peak_memory: Mapped[int | None] = mapped_column(BigInteger())
    """Bytes, of the engine's process."""
    gpu_memory: Mapped[int | None] = mapped_column(BigInteger())
    gpu_utilisation: Mapped[float | None]
    """In [0, 1]."""
    per_dollar: Mapped[float | None]
    """Candidates; null where nothing is paid, or the price is not known."""
    agreement: Mapped[float | None]
    """With the tier's own model, in [0, 1]: the share of candidates with the same outcome."""
    flips: Mapped[int | None]
    """Candidates with another outcome."""
    flips_near: Mapped[int | None]
    """Of those, the ones that the tier's own model scores near a threshold."""
    suggested: Mapped[bool]
    problem: Mapped[str | None]
    """Why it was not measured."""


class SampleRow(Base):
    """What a run used while it worked; counts and seconds are those of its attempt so far."""

    __tablename__ = "sample"
    __table_args__ = ({"sqlite_with_rowid": False},)

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """From 0 in each attempt; the newest one moves on until its time is over."""
    position: Mapped[int] = mapped_column(primary_key=True)
    """Of the tier that worked; -1 where none did."""
    at: Mapped[datetime]
    cpu: Mapped[float | None]
    """Cores that the run's processes kept busy since the sample before, as a mean."""
    memory: Mapped[int | None] = mapped_column(BigInteger())
    """Bytes of all of them, shared pages counted in each."""
    gpu: Mapped[float | None]
    """How busy the cards are, in [0, 1]; null without any."""
    gpu_memory: Mapped[int | None] = mapped_column(BigInteger())
    """Bytes in use on all cards."""
    judged: Mapped[int] = mapped_column(BigInteger())
    expected: Mapped[int] = mapped_column(BigInteger())
    """Judged ones and those that wait."""
    prompt_tokens: Mapped[int] = mapped_column(BigInteger())
    cached_tokens: Mapped[int] = mapped_column(BigInteger())
    completion_tokens: Mapped[int] = mapped_column(BigInteger())
    loading: Mapped[float]
    """Seconds of opening the engine."""
    reading: Mapped[float]
    """Seconds of fetching candidates from the database."""
    judging: Mapped[float]
    """Seconds of waiting for the judge, whatever it did: tokenizing, prefilling, decoding."""
    storing: Mapped[float]
    """Seconds of writing answers, and of deciding by them."""


class PilotRow(Base):
    """What a sample of a screen's candidates showed of its tiers."""

    __tablename__ = "pilot"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True, autoincrement=False)
    """The run of kind `pilot` that paid for it."""
    screen: Mapped[str] = mapped_column(index=True)
    body: Mapped[str]
    """As JSON: `tiers.planning.measured.Pilot`."""
    created_at: Mapped[datetime]


class PlanRow(Base):
    """What a run was expected to take when it began."""

    __tablename__ = "plan"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), primary_key=True, autoincrement=False)
    pilot_id: Mapped[int | None]
    """The pilot behind it; null where there was none."""
    body: Mapped[str]
    """As JSON: for each tier, ranges of candidates, promoted, seconds and dollars."""
    created_at: Mapped[datetime]


class ClassifierRow(Base):
    """A version of a classifier: what it weighs, and whether it was admitted."""

    __tablename__ = "classifier"
    __table_args__ = (UniqueConstraint("screen", "tier", "version"),)

    id: Mapped[Id]
    screen: Mapped[str]
    tier: Mapped[str]
    version: Mapped[str]
    """Of `body`, which names its training set: the first 16 digits of the SHA-256."""
    state: Mapped[ClassifierState]
    reason: Mapped[str | None]
    """Why it was admitted or refused."""
    labels: Mapped[str]
    """As JSON: how many training labels came from whom, and how many of them say yes."""
    body: Mapped[bytes]
    """Compressed JSON: `tiers.backends.classifier.tier.pack`."""
    created_at: Mapped[datetime]


class ClassifierTextRow(Base):
    """A text that a version was trained on: it certifies nothing of this version."""

    __tablename__ = "classifier_text"
    __table_args__ = ({"sqlite_with_rowid": False},)

    classifier_id: Mapped[int] = mapped_column(ForeignKey("classifier.id"), primary_key=True)
    text_id: Mapped[int] = mapped_column(_Big, ForeignKey("text.id"), primary_key=True)
    share: Mapped[float]
    """The label: 1 for yes, 0 for no, between them what a tier was unsure of."""
    held_out: Mapped[float]
    """Its score by a model that did not see the label."""
