"""The store: all that is remembered, one noun after the other."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from db.addresses import Addresses, AddressStatus
from db.aggregates import Aggregates
from db.approvals import Approval, Approvals
from db.audits import Audited, Audits
from db.batches import Batch, Batches
from db.benchmarks import Benchmark, Benchmarks
from db.candidates import BadRow, Candidates, Ingested, Row
from db.classifiers import Classifier, Classifiers
from db.engine import open_engine
from db.errors import DatabaseError, InputRefused, StoreError
from db.judgements import Judgements
from db.labels import PEOPLE, Label, Labels, Scored, rubric_digest
from db.models import BatchState, ClassifierState, LabelSource, RunState, TierState
from db.plans import Plans
from db.policies import Change, Policies, Version
from db.quotes import Quotes
from db.results import Difference, Explanation, FunnelRow, JudgementDetail, Results
from db.run_tiers import RunTiers, Spent
from db.runs import Account, Run, Runs, RunStatus
from db.samples import Sample, Samples
from db.verdicts import Verdicts
from db.what_if import Consequences, Flip, Step, what_if

__all__ = [
    "PEOPLE",
    "Account",
    "AddressStatus",
    "Approval",
    "Audited",
    "BadRow",
    "Batch",
    "BatchState",
    "Benchmark",
    "Change",
    "Classifier",
    "ClassifierState",
    "Consequences",
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
    "Sample",
    "Scored",
    "Spent",
    "Step",
    "Store",
    "StoreError",
    "TierState",
    "Version",
    "opened_store",
    "rubric_digest",
    "what_if",
]


class Store:
    """All that one database remembers, by noun; every method of a noun is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runs = Runs(engine)
        self.tiers = RunTiers(engine)
        self.candidates = Candidates(engine)
        self.judgements = Judgements(engine)
        self.quotes = Quotes(engine)
        self.verdicts = Verdicts(engine)
        self.policies = Policies(engine)
        self.labels = Labels(engine)
        self.audits = Audits(engine)
        self.approvals = Approvals(engine)
        self.batches = Batches(engine)
        self.addresses = Addresses(engine)
        self.benchmarks = Benchmarks(engine)
        self.samples = Samples(engine)
        self.results = Results(engine)
        self.aggregates = Aggregates(engine)
        self.plans = Plans(engine)
        self.classifiers = Classifiers(engine)


@contextmanager
def opened_store(url: str) -> Iterator[Store]:
    """A store whose connections are closed at the end; the database is there and at head.

    Raises:
        DatabaseError: the database cannot be used.
    """
    engine = open_engine(url)
    try:
        yield Store(engine)
    finally:
        engine.dispose()
