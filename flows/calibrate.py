"""The flow that earns a promise: plan, score, label, certify.

It may be killed at any time: what comes next follows from the stored scores and labels and from
the seed of the draw.
"""

import getpass
from typing import Any

from prefect import flow

from db.store import Change, ClassifierState, StoreError
from flows.guarantee.approval import approval_of, refusal
from flows.guarantee.certificate import Approved, Certificate, markdown
from flows.guarantee.certifying import certificate_of, last_tier, worth
from flows.guarantee.classifiers import fitted, left_out, settle
from flows.guarantee.state import Calibration, NotYet, guarantee_of
from flows.progress import Display, say
from flows.recorder import current, recorded
from flows.report.artifacts import publish
from flows.report.reliability import markdown as reliability_markdown
from flows.report.reliability import reliability_of
from flows.run.batch import BatchRun
from flows.run.judging import TierRun, TierWork
from flows.run.meters import sampled
from flows.run.screening import prepare, read_candidates, tier_works
from flows.run.session import opened
from flows.settings import Settings
from flows.watch.events import PAUSED, emit
from tiers.calibration import Result, Status
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import OpenAIBatchTier


@flow(
    name="calibrate",
    flow_run_name="{definition.screen}",
    persist_result=False,
    validate_parameters=True,
)
def calibrate(
    definition: Screen,
    key: str | None = None,
    limit: int | None = None,
    read: bool = True,
    anyway: bool = False,
    author: str | None = None,
    approve: bool = False,
    wait_seconds: int = 3600,
    allow_shrink: bool = False,
) -> dict[str, Any]:
    """Set the thresholds of a run so that its screen's guarantee holds, and certify them.

    Args:
        definition: the screen, with a guarantee.
        key: names the run; by default the newest unfinished run of this definition, or a new one.
        limit: read only so many candidates; nobody leaves the run then.
        read: read the input; without it, the run goes on with the candidates that it has.
        anyway: go on where the plan says that the labels will not do.
        author: who has it made; by default the user of this process.
        approve: where the guarantee wants approval, the author gives it.
        wait_seconds: how long to wait for it in the Prefect UI otherwise.
        allow_shrink: let more than half of the run's candidates leave it.

    Returns:
        `run`, `status` (certified, infeasible_budget, refused, waiting or paused) and `message`;
        once the labels are complete, the certificate.

    Raises:
        InputRefused: more than half would leave it; the run stands as before.
        ScreenError: the input holds no candidate, or cannot be read; likewise.
        StoreError: the screen promises nothing.
        TierError: a tier could not go on; what was judged is kept.
    """
    guarantee_of(definition)
    key = prepare(definition, key, to_calibrate=True) if key is None else key
    asked = definition
    definition = fitted(asked, Settings().database(), key=key, on_trial=True)
    if definition.guarantee is None:
        raise StoreError(
            f"screen '{definition.screen}': no version of its classifier was admitted, so that "
            f"tier '{definition.tiers[0].name}' is asked about everybody and there is nothing to "
            "calibrate; tamis run goes on, or train another version: tamis distil"
        )
    name = f"{definition.screen} {key}"
    told = {"screen": definition.screen, "key": key, "limit": limit, "read": read}
    with (
        recorded("calibrate", name, tags=[definition.screen], **told),
        opened(definition, key, "calibrating ") as (store, run, judges, shown, hold),
        sampled(store, run) as sampler,
    ):
        for line in left_out(asked, definition):
            say(line, shown)
        if read:
            read_candidates(definition, store, run, limit, shown, allow_shrink=allow_shrink)
        try:
            _plan(Calibration(store, run, definition), shown, anyway=anyway)
            works = tier_works(definition, store, run, judges, hold, sampler=sampler)
            _score(works, shown)
            calibration = Calibration(store, run, definition)
            _foresee(calibration, works[-1], shown, anyway=anyway)
            _label(calibration, works[-1], shown)
            name = author or getpass.getuser()
            return _certify(calibration, name, shown, approve=approve, wait_seconds=wait_seconds)
        except (NotYet, _Refused) as stop:
            say(str(stop), shown)
            status = "waiting" if isinstance(stop, NotYet) else Status.INFEASIBLE_BUDGET
            if isinstance(stop, _Refused):
                settle(store, definition, ClassifierState.REFUSED, str(stop))
            if status == "waiting":
                emit(run, PAUSED, str(stop))
            return {"run": run.key, "status": str(status), "message": str(stop)}
    message = "paused, as asked for; calibrate again to go on"
    return {"run": key, "status": "paused", "message": message}


class _Refused(Exception):
    """The plan says that the labels will not do."""


def _plan(calibration: Calibration, shown: Display, *, anyway: bool) -> None:
    """Say what the promise needs before anything is spent.

    Raises:
        _Refused: more labels than may be used.
    """
    plan = calibration.plan()
    say(f"plan: {plan.message}", shown)
    if plan.feasible is False and not anyway:
        raise _Refused(
            f"{plan.message}. Nothing was spent; raise labels, lower {calibration.section.kind}, "
            "or go on all the same with --anyway"
        )


def _score(works: list[TierWork], shown: Display) -> None:
    """Have every tier but the last judge all candidates, and decide nothing.

    Raises:
        NotYet: a tier has not judged all: thresholds of several tiers hold together only.
    """
    store, run_id = works[0].store, works[0].run.id
    store.verdicts.undecide(run_id)
    for work in works[:-1]:
        _judge(work, shown)
        if waiting := store.judgements.count_unjudged(run_id, work.position, work.judge_id):
            raise NotYet(
                f"tier '{work.name}' has still to judge {waiting:,} texts, those that it "
                "failed on included, and a calibration needs its scores of all of them; raise its "
                "budget if it has one, and calibrate again"
            )
        if work.position < len(works) - 2:
            store.labels.advance(run_id, work.position, work.judge_id)


def _foresee(calibration: Calibration, last: TierWork, shown: Display, *, anyway: bool) -> None:
    """Say what a classifier is expected to save, and keep its training labels as known.

    Raises:
        _Refused: the cascade would be no cheaper with it.
    """
    if not calibration.versions:
        return
    names = ", ".join(calibration.definition.tiers[at].name for at, _ in calibration.versions)
    found = calibration.foreseen()
    say(f"tier '{names}': {found}", shown)
    if not found.pays and not anyway:
        raise _Refused(f"tier '{names}' is not admitted: {found}. No label was drawn for it")
    if not calibration.section.by_people:
        trained = sorted(calibration.trained)
        calibration.tell_scores(calibration.store.labels.judged(last.judge_id, trained))


def _label(calibration: Calibration, last: TierWork, shown: Display) -> None:
    """Have the last tier judge what the draw asks for, or wait for people.

    Raises:
        NotYet: people are asked, or the last tier has not answered.
    """
    top = TierRun(last, shown)
    try:
        while texts := calibration.missing():
            if calibration.section.by_people:
                raise NotYet(_ask_people(calibration, len(texts)))
            calibration.store.labels.send_on(last.run.id, last.position, texts)
            if isinstance(last.job.config, OpenAIBatchTier):
                BatchRun(last, shown).run()
            else:
                top.judge_waiting()
            judged = calibration.store.labels.judged(last.judge_id, texts)
            if left := len(texts) - len(judged):
                why = last.admission.closed if last.admission is not None else None
                raise NotYet(
                    f"tier '{last.name}' has still to answer {left:,} labels"
                    f"{f': {why}' if why else ''}; calibrate again when it has or can"
                )
            calibration.tell_scores(judged)
        if not calibration.section.by_people:
            top.finish()
    finally:
        top.close()


def _judge(work: TierWork, shown: Display) -> None:
    if isinstance(work.job.config, OpenAIBatchTier):
        BatchRun(work, shown).run()
        return
    tier = TierRun(work, shown)
    try:
        tier.judge_waiting()
        tier.finish()
    finally:
        tier.close()


def _ask_people(calibration: Calibration, count: int) -> str:
    key = calibration.run.key
    tied = calibration.disputed()
    return (
        f"{count:,} labels are wanted from people next: 'tamis label --run {key}' asks for them "
        f"one by one, 'tamis label export {key} --output labels.csv' writes a sheet to hand out; "
        "then calibrate again"
        + (f". People disagree about {tied:,} candidates: 'tamis label agreement'" * bool(tied))
    )


def _certify(
    calibration: Calibration, author: str, shown: Display, *, approve: bool, wait_seconds: int
) -> dict[str, Any]:
    """Put certified thresholds into force, or say why there are none.

    Raises:
        NotYet: the guarantee wants a person's approval, and nobody gave it.
    """
    store, run, result = calibration.store, calibration.run, calibration.result()
    certificate = certificate_of(calibration, result, author)
    for line in (certificate.message, *worth(calibration, result)):
        say(line, shown)
    _publish(calibration, certificate)
    _require_rejects(calibration, result)
    if result.status is not Status.CERTIFIED:
        store.verdicts.undecide(run.id)
        settle(store, calibration.definition, ClassifierState.REFUSED, certificate.message)
        return certificate.as_json()
    if calibration.section.approval:
        digest = certificate.digest()
        if approve:
            store.approvals.say(run.id, digest, approved=True, author=author)
        approval = approval_of(store, run, digest, shown, wait_seconds)
        if not approval.approved:
            say(refusal(run, approval), shown)
            return {"run": run.key, "status": "refused", "message": refusal(run, approval)}
        approved = Approved(approved=True, by=approval.author, reason=approval.reason)
        certificate = certificate.model_copy(update={"approval": approved})
        _publish(calibration, certificate)
    store.policies.certify(
        run.id,
        _changes(calibration, result),
        labels_from=calibration.reviewer,
        certificate=certificate.as_json(),
        author=author,
        reason=certificate.message,
    )
    settle(store, calibration.definition, ClassifierState.ADMITTED, certificate.message)
    store.verdicts.redecide(run.id)
    publish(store, run)
    return certificate.as_json()


def _require_rejects(calibration: Calibration, result: Result) -> None:
    """Refuse a classifier that may reject hardly anybody: without it all is decided alike.

    Raises:
        _Refused: its certified threshold rejects no more than one without knowledge might.
    """
    if not calibration.versions or result.status is not Status.CERTIFIED:
        return
    share = max(
        float((calibration.scores[:, at] < result.thresholds[at].lowest_kept).mean())
        for at, _ in calibration.versions
    )
    if share <= calibration.foreseen().chance:
        names = ", ".join(calibration.definition.tiers[at].name for at, _ in calibration.versions)
        raise _Refused(
            f"tier '{names}' is not admitted: among {result.positives_found:,} positives of "
            f"{result.labels_used:,} labels are some that it scores low, so that it may "
            f"reject only {share:.1%}; raise labels, or train it on more: tamis distil --labels 400"
        )


def _changes(calibration: Calibration, result: Result) -> dict[int, Change]:
    """Every tier's thresholds."""
    changes = {
        position: Change(one.reject_below, one.accept_above)
        for position, one in enumerate(result.thresholds)
    }
    return {**changes, calibration.below: last_tier(calibration)}


def _publish(calibration: Calibration, certificate: Certificate) -> None:
    run = calibration.run
    page = [markdown(certificate)]
    if calibration.labels():
        found = reliability_of(calibration.store, run)
        page += ["", "How far scores are probabilities; no threshold depends on it:", ""]
        page += reliability_markdown(found)
    current().page(
        f"{run.screen}-{run.key}-certificate", f"Certificate of {run.key}", "\n".join(page)
    )
