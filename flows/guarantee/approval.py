"""A person's word on certified thresholds, asked for in the Prefect UI or given in the terminal."""

from typing import Any

from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from db.store import Run
from flows.guarantee.certificate import differences
from flows.guarantee.state import Calibration, NotYet
from flows.progress import Display, say

POLL_SECONDS = 5


class Approval(RunInput):
    """The form in the Prefect UI."""

    approved: bool = False
    by: str = ""
    """Who decides."""
    reason: str = ""


def given_before(calibration: Calibration) -> Approval | None:
    """What was said about the same certificate before; None for nothing, or about another one."""
    certificate = calibration.store.policies.certificate(calibration.run.id)
    if certificate is None or certificate["run"] != calibration.run.key:
        return None
    if certificate.get("approval") is None or differences(calibration, certificate):
        return None
    return Approval.model_validate(certificate["approval"])


def asked_for(run: Run, shown: Display, seconds: int) -> Approval:
    """What a person says in the Prefect UI, where the certificate is an artifact by now.

    Raises:
        NotYet: nobody said anything within `seconds`, or there is no UI to say it in.
    """
    if FlowRunContext.get() is None or seconds <= 0:
        raise _unanswered(run)
    say(
        f"run {run.key} waits {seconds:,} s for a person to approve in the Prefect UI: look at the "
        "certificate among the artifacts, press Resume and fill in the form",
        shown,
    )
    try:
        return pause_flow_run(
            wait_for_input=Approval.with_initial_data(
                description="Shall these thresholds take effect? The certificate is an artifact."
            ),
            timeout=seconds,
            poll_interval=min(POLL_SECONDS, seconds),
        )
    except FlowPauseTimeout as error:
        raise _unanswered(run) from error


def refusal(run: Run, approval: Approval) -> str:
    """Why certified thresholds do not take effect."""
    because = f": {approval.reason}" if approval.reason else ""
    return (
        f"refused by {approval.by or 'a person'}{because}; the thresholds of run '{run.key}' are "
        "certified, and not in force. Change the guarantee, or calibrate again and approve"
    )


def as_record(approval: Approval) -> dict[str, Any]:
    """As the certificate keeps it."""
    return {"approved": approval.approved, "by": approval.by, "reason": approval.reason}


def _unanswered(run: Run) -> NotYet:
    return NotYet(
        f"the thresholds of run '{run.key}' are certified and wait for approval; calibrate again "
        "to be asked in the Prefect UI, or approve here with: tamis calibrate FILE --approve. "
        "Nothing is paid for again"
    )
