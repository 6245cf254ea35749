"""All of a run: read the input, then tier by tier, then a verdict on everybody.

Resume is a query: what has no judgement is judged, whoever stopped before and however.
"""

from pydantic import ValidationError

from db.engine import check_ready, open_engine
from db.store import Run, RunState, Store, opened_store
from flows.files.after import check_after, write_after
from flows.files.ingest import check_input, in_words, ingest
from flows.files.writing import WritingError
from flows.guarantee.classifiers import fitted, left_out
from flows.guarantee.state import check_calibration, require_calibration
from flows.guarantee.thresholds import standing
from flows.progress import Display, say
from flows.recorder import current, recorded
from flows.report.artifacts import publish, publish_screen
from flows.report.plan import keep_plan
from flows.run.budget import Budgets
from flows.run.cascade import Cascade
from flows.run.hold import Hold
from flows.run.judging import TierWork
from flows.run.meters import Meter, Sampler, sampled
from flows.run.session import keys_of, open_run, opened
from flows.settings import Settings, load_keys
from flows.watch.telemetry import span
from flows.watch.traces import TierTraces, Traces, traced
from tiers.opening import inspect
from tiers.prices import check_prices, price_of
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Candidates, Screen
from tiers.screenfile.tiers import RemoteTier
from tiers.tier import job_of
from tiers.types import Price, TierError

OVER = (RunState.DONE, RunState.ALARM, RunState.INCOMPLETE)
ROUNDS = 4
"""How often a budget that left something over is spent on more candidates."""


def prepare(
    definition: Screen, key: str | None, *, to_calibrate: bool = False, read: bool = True
) -> str:
    """Check what can be checked before anything is done, and find or add the run; its key.

    Args:
        definition: the screen.
        key: names the run; None for the newest unfinished one, or a new one.
        to_calibrate: the promise need not be calibrated yet.
        read: whether the input will be read.

    Raises:
        DatabaseError: the database cannot be used.
        ScreenError: the candidates' files are not there, lack a column or hold no candidate.
        TierError: a model, a key or a price is not there, or a promise is not calibrated.
        WritingError: results cannot go where the screen wants them.
    """
    load_keys(tier.key_name for tier in definition.tiers if isinstance(tier, RemoteTier))
    check_prices(definition)
    if definition.after is not None:
        check_after(definition.after)
    url = Settings().database()
    _check_shard(definition, url)
    check_ready(url)
    definition = fitted(definition, url, key=key, on_trial=to_calibrate)
    if read:
        check_input(definition.candidates)
    for position in range(len(definition.tiers)):
        inspect(job_of(definition, position), "")
    engine = open_engine(url)
    try:
        store = Store(engine)
        if not to_calibrate:
            check_calibration(store, definition, key)
        return open_run(store, definition, key).key
    finally:
        engine.dispose()


def of_shard(definition: Screen, shard: str, key: str) -> tuple[Screen, str]:
    """The screen of one part of the candidates, and the key of that part's run.

    Raises:
        ScreenError: this is no part, such as 9/8.
    """
    try:
        given = definition.candidates.model_dump(by_alias=True) | {"shard": shard}
        candidates = Candidates.model_validate(given)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ScreenError("--shard", [f"'{shard}': {said}; write --shard 2/8"]) from error
    part = definition.model_copy(update={"candidates": candidates})
    return part, f"{key}-{shard.replace('/', 'of')}"


def _check_shard(definition: Screen, url: str) -> None:
    """Refuse what a part of the candidates cannot do.

    Raises:
        TierError: a policy ranks over all, a promise is about all, or the database is for one
            machine.
    """
    if definition.candidates.shard is None:
        return
    ranking = [tier.name for i, tier in enumerate(definition.tiers) if definition.policy(i).ranks]
    if ranking:
        raise TierError(
            f"tier '{ranking[0]}' ranks its candidates, and a shard sees a part of them: the best "
            "of a part are not the best of all; write reject_below and accept_above instead"
        )
    if definition.guarantee is not None:
        raise TierError(
            "a guarantee is about all candidates, and a shard sees a part of them: calibrate on "
            "one machine, write the thresholds into the tiers' policies, and leave guarantee out"
        )
    if url.startswith("sqlite"):
        raise TierError(
            "shards are for several machines, and SQLite is for one: give all of them the same "
            "--database postgresql://..., or leave --shard out"
        )


def screen_candidates(
    definition: Screen,
    *,
    key: str | None = None,
    limit: int | None = None,
    read: bool = True,
    allow_shrink: bool = False,
) -> Run:
    """Screen all candidates of a definition; Prefect is told of it, and not waited for.

    A run that a person pauses meanwhile is given back like any other, in state `paused`.

    Args:
        definition: the screen.
        key: names the run; by default the newest unfinished run of this definition, or a new one.
        limit: read only so many candidates; nobody leaves the run then.
        read: read the input; without it, the run goes on with the candidates that it has.
        allow_shrink: let more than half of the run's candidates leave it.

    Raises:
        InputRefused: more than half would leave it; the run stands as before.
        ScreenError: the input holds no candidate, or cannot be read; likewise.
        TierError: a tier could not go on; what was judged is kept.
    """
    key = prepare(definition, key, read=read) if key is None else key
    asked, definition = definition, fitted(definition, Settings().database(), key=key)
    told = {"screen": definition.screen, "key": key, "limit": limit, "read": read}
    name = f"{definition.screen} {key}"
    with (
        recorded("screen", name, tags=[definition.screen], **told),
        opened(definition, key) as (store, run, judges, shown, hold),
        traced(run, definition.traces, keys_of(run), shown) as traces,
        sampled(store, run) as sampler,
        span(f"run {key}", run=key, screen=definition.screen),
    ):
        publish_screen(run, definition)
        try:
            require_calibration(store, run, definition)
            if read:
                read_candidates(definition, store, run, limit, shown, allow_shrink=allow_shrink)
            keep_plan(store, run, definition, judges)
            for line in [*left_out(asked, definition), *standing(store, run)]:
                say(line, shown)
            for _ in range(ROUNDS):
                works = tier_works(definition, store, run, judges, hold, traces, sampler)
                if not Cascade(definition, works, shown).run():
                    break
        finally:
            publish(store, run)
    hand_on(definition, key)
    return run


def hand_on(definition: Screen, key: str) -> None:
    """Write the results of a run where the screen wants them, once everybody has a verdict.

    Rows that cannot be read make a run incomplete, and hold nothing up.

    Raises:
        WritingError: they cannot be written there; the run is done all the same.
    """
    if definition.after is None:
        return
    with opened_store(Settings().database()) as store:
        run = store.runs.find(key)
        if run.state not in OVER or store.runs.account(run.id).pending:
            return
        try:
            current().say(write_after(store, run, definition.after))
        except WritingError as error:
            store.runs.note(run.id, str(error))
            raise


def read_candidates(
    definition: Screen,
    store: Store,
    run: Run,
    limit: int | None,
    shown: Display,
    *,
    allow_shrink: bool,
) -> None:
    """Read the input, and say what came of it."""
    step = shown.start("reading", None)
    read = ingest(store, run.id, definition.candidates, limit=limit, allow_shrink=allow_shrink)
    step.advance(read.new + read.changed + read.known)
    say(in_words(read), shown)


def tier_works(
    definition: Screen,
    store: Store,
    run: Run,
    judges: list[int],
    hold: Hold,
    traces: Traces | None = None,
    sampler: Sampler | None = None,
) -> list[TierWork]:
    """The tiers with their prices and budgets as they stand now."""
    prices = [price_of(tier) for tier in definition.tiers]
    price_ids = [store.tiers.set_price(run.id, i, price) for i, price in enumerate(prices)]
    budgets = Budgets(definition, store, run.id)
    jobs = [job_of(definition, position) for position in range(len(definition.tiers))]
    return [
        TierWork(
            store,
            run,
            position,
            jobs[position],
            judge_id,
            price_ids[position],
            by_tokens=_by_tokens(definition, position, price),
            admission=budgets.admission(position),
            budgets=budgets,
            pausing=hold.pausing.is_set,
            traces=None if traces is None else TierTraces(traces, jobs[position]),
            meter=Meter() if sampler is None else sampler.meter(position),
        )
        for position, (judge_id, price) in enumerate(zip(judges, prices, strict=True))
    ]


def _by_tokens(definition: Screen, position: int, price: Price | None) -> bool:
    """Whether a price or a budget goes by the tokens that a server tells, or fails to."""
    tier = definition.tiers[position]
    if price is not None and not price.hour and max(price[:3]) > 0:
        return True
    budgets = [each for each in (definition.budget, tier.budget) if each is not None]
    return isinstance(tier, RemoteTier) and any(each.tokens for each in budgets)
