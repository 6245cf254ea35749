"""A person's word on certified thresholds: a row, written from the terminal or by a form.

Prefect only shows the form. Whether somebody has approved is never asked of Prefect, because its
pause can come back without an answer: Prefect 3.8 skips the pause of a run that was killed or sent
SIGTERM while it waited.
"""

from uuid import uuid4

from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from db.store import Approval, Run, Store
from flows.guarantee.state import NotYet
from flows.progress import Display, say
from flows.watch.events import PAUSED, emit

POLL_SECONDS = 5


class ApprovalForm(RunInput):
    """The form in the Prefect UI."""

    approved: bool = False
    by: str = ""
    """Who decides."""
    reason: str = ""


def approval_of(store: Store, run: Run, digest: str, shown: Display, seconds: int) -> Approval:
    """A person's word on the certificate of this digest; asked for where nobody has approved.

    Raises:
        NotYet: nobody said anything within `seconds`, or there is no UI to say it in.
    """
    before = store.approvals.newest(run.id, digest)
    if before is not None and before.approved:
        return before
    if FlowRunContext.get() is None or seconds <= 0:
        raise _unanswered(run)
    _ask(store, run, digest, shown, seconds)
    said = store.approvals.newest(run.id, digest)
    if said is None or said == before:
        raise _unanswered(run)
    return said


def _ask(store: Store, run: Run, digest: str, shown: Display, seconds: int) -> None:
    """Show the form, and write down what it says."""
    emit(run, PAUSED, "thresholds are certified and wait for a person's approval")
    say(
        f"run {run.key} waits {seconds:,} s for a person to approve in the Prefect UI: look at the "
        "certificate among the artifacts, press Resume and fill in the form",
        shown,
    )
    try:
        form = pause_flow_run(
            wait_for_input=ApprovalForm.with_initial_data(
                description="Shall these thresholds take effect? The certificate is an artifact."
            ),
            timeout=seconds,
            poll_interval=min(POLL_SECONDS, seconds),
            key=str(uuid4()),  # an earlier pause of this flow run, and its form, are not this one
        )
    except FlowPauseTimeout as error:
        raise _unanswered(run) from error
    if isinstance(form, ApprovalForm):
        store.approvals.say(
            run.id, digest, approved=form.approved, author=form.by, reason=form.reason
        )


def refusal(run: Run, approval: Approval) -> str:
    """Why certified thresholds do not take effect."""
    because = f": {approval.reason}" if approval.reason else ""
    return (
        f"refused by {approval.author or 'a person'}{because}; the thresholds of run '{run.key}' "
        "are certified, and not in force. Change the guarantee, or calibrate again and approve"
    )


def _unanswered(run: Run) -> NotYet:
    return NotYet(
        f"the thresholds of run '{run.key}' are certified and wait for approval; calibrate again "
        "to be asked in the Prefect UI, or approve here with: tamis calibrate FILE --approve. "
        "Nothing is paid for again"
    )
