"""tamis pilot and tamis plan: what a screen takes, before it runs."""

import re
import sys
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.console import (
    DONE,
    INTERRUPTED,
    UNFINISHED,
    USAGE,
    AllowCode,
    AsJson,
    Database,
    File,
    err,
    fail,
    open_store,
    out,
    print_json,
    print_rows,
    settings,
    unwritable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.files.sampling import Sample
    from tiers.planning.alternatives import Alternative, Maker
    from tiers.planning.choice import Choice, Limits
    from tiers.planning.measured import Decision, Pilot, Range, TierReport
    from tiers.screenfile.file import Screen

app = typer.Typer()

SAMPLE = 200
"""Texts of which tokens are guessed without a pilot."""


class Goals(StrEnum):
    """What a plan is chosen for."""

    SPEED = "speed"
    COST = "cost"
    BALANCE = "balance"
    QUALITY = "quality"


@app.command(epilog="Example: `tamis pilot screen.yaml --sample 200 --usd 2`")
def pilot(
    file: File,
    sample: Annotated[int, typer.Option(min=1, help="How many candidates are drawn.")] = 100,
    usd: Annotated[float | None, typer.Option(min=0, help="The pilot's own budget.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Its own budget of time.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the sample.")] = 0,
    database: Database = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Send a random sample through every tier, and measure time, tokens and agreement.

    Its judgements are kept, so that no later run pays for them. They may choose a plan; they
    certify nothing. Exit code 0: measured. 3: stopped, what was judged is kept.
    """
    import os

    from flows.pilot import run_pilot
    from flows.report.plan import plain
    from tiers.planning.measured import decision, report
    from tiers.prices import check_prices
    from tiers.screenfile.file import load_screen
    from tiers.screenfile.limits import BudgetSection
    from tiers.types import TierError

    definition = load_screen(file)
    os.environ["TAMIS_DATABASE_URL"] = settings().database(database)
    none = usd is None and hours is None
    budget = definition.budget if none else BudgetSection(usd=usd, hours=hours)
    try:
        check_prices(definition.model_copy(update={"budget": budget}))
    except TierError as error:
        fail(str(error))
    try:
        measured = run_pilot(
            definition,
            sample,
            seed=seed,
            budget=budget,
            announce=lambda drawn: _announce(definition, drawn, sample, budget),
        )
    except TierError as error:
        fail(str(error), UNFINISHED)
    except KeyboardInterrupt:
        fail("stopped; what was judged is kept. Go on with the same command", INTERRUPTED)
    policies = [definition.policy(i) for i in range(len(definition.tiers))]
    tiers, decided = report(measured, policies), decision(measured, policies)
    if as_json:
        told = {"pilot": measured.key, "sample": measured.size, "of": measured.candidates}
        figures = {"seconds": measured.seconds, "usd": measured.usd}
        found = {"tiers": [asdict(one) for one in tiers], "decision": asdict(decided)}
        print_json(plain({**told, **figures, **found}))
    else:
        _show_pilot(measured, tiers, decided)
        out.print(f"next: tamis plan {file}")


@app.command(epilog="Example: `tamis plan screen.yaml --compare --deadline 8h --usd 15`")
def plan(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The screen file.")] = None,
    optimize: Annotated[Goals | None, typer.Option(help="Choose an alternative for this.")] = None,
    deadline: Annotated[str | None, typer.Option(help="It has to be done in: 8h, 30min.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="It may cost so much.")] = None,
    recall: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of what the last tier accepts.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="So many, in place of those of the input.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="A row for each alternative.")] = False,
    write: Annotated[Path | None, typer.Option(help="Write the choice as a screen file.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="What this machine could do.")] = False,
    kept: Annotated[bool, typer.Option("--kept", help="How often past plans were right.")] = False,
    database: Database = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Say what a screen takes: candidates, tokens, time and money a tier. No model is asked.

    Exit code 0: planned. 2: nothing can be chosen; the message says why.
    """
    if kept:
        _show_kept(database, as_json)
        return
    if file is None:
        fail("tamis plan needs a screen file; write tamis plan screen.yaml, or tamis plan --kept")
    from flows.guarantee.classifiers import fitted
    from tiers.planning.choice import Limits, judged
    from tiers.screenfile.file import load_screen

    definition = fitted(load_screen(file), settings().database(database), on_trial=True)
    limits = Limits(_seconds(deadline), usd, recall)
    maker, count, said, resume = _maker(definition, database, candidates)
    goal = _goal(optimize, limits, write, ask=not as_json)
    rows = judged(
        maker.all() if compare or goal else [maker.configured()],
        _with_own_budget(definition, limits),
    )
    choice, problem = _choice(rows, goal, _with_own_budget(definition, limits))
    if problem is not None and choice is None and optimize is None and write is None:
        problem, said = None, f"{said}; {problem}"  # nobody asked for a choice in so many words
    problem = problem or (_unmet(rows[0], limits) if choice is None else None)
    if as_json:
        print_json(_as_json(definition, rows, choice, problem, count, said, resume, compare))
    else:
        _show_plan(definition, rows[0], count, said, resume)
        _show_more(definition, rows, goal, choice, explain=explain, compare=compare)
    if problem is not None:
        fail(problem)
    if write is not None and choice is not None and choice.chosen is not None:
        _write(file, write, choice.chosen, rows[0])
    raise typer.Exit(DONE if problem is None else USAGE)


def _show_more(
    definition: "Screen",
    rows: "Sequence[Alternative]",
    goal: Goals | None,
    choice: "Choice | None",
    *,
    explain: bool,
    compare: bool,
) -> None:
    """What was asked for beside the screen as configured."""
    if explain:
        _show_rooflines(definition, rows[0])
    if compare:
        _show_alternatives(rows)
    if goal is not None and choice is not None and choice.chosen is not None:
        out.print(f"for {goal}: {choice.chosen.name}: {choice.reason}", style="bold")
        out.print("chosen by a pilot, which certifies nothing: tamis calibrate does")


def _unmet(row: "Alternative", limits: "Limits") -> str | None:
    """Why the screen as configured cannot meet what was asked for, at the least that it takes."""
    least = (row.estimate.seconds.low, limits.seconds), (row.estimate.usd.low, limits.usd)
    over = any(low is not None and most is not None and low > most for low, most in least)
    return f"what was asked for cannot be met: {row.infeasible}" if over else None


def _with_own_budget(definition: "Screen", limits: "Limits") -> "Limits":
    """The limits, and those of the screen file's own budget where none was given."""
    budget = definition.budget
    if budget is None:
        return limits
    seconds = None if budget.hours is None else budget.hours * 3600
    return replace(
        limits,
        seconds=limits.seconds if limits.seconds is not None else seconds,
        usd=limits.usd if limits.usd is not None else budget.usd,
    )


def _choice(
    rows: "Sequence[Alternative]", goal: Goals | None, limits: "Limits"
) -> tuple["Choice | None", str | None]:
    """What is chosen, if anything, and what is in the way."""
    from tiers.planning.choice import NothingToRank, choose

    if goal is None:
        return None, None
    try:
        found = choose(rows, goal.value, limits)
    except NothingToRank as error:
        return None, str(error)
    return found, None if found.chosen else found.reason


def _maker(
    definition: "Screen", database: str | None, candidates: int | None
) -> tuple["Maker", int, str, str | None]:
    """What makes alternatives, how many candidates, by which pilot, and what a resume would do."""
    from db.candidates import text_digest
    from db.errors import EmptyDatabase
    from flows.files.sampling import sampled
    from flows.report import forecast
    from flows.report.plan import Found, find_pilot, guesses, unanswered
    from tiers.planning.alternatives import Maker
    from tiers.planning.estimate import Workload

    drawn = sampled(definition.candidates, SAMPLE, 0)
    count = candidates or drawn.candidates
    found, resume, todo = Found(None, None, "no pilot: tamis pilot measures one"), None, []
    try:
        store = open_store(database)
        found = find_pilot(store, definition)
        if candidates is None and found.judges:
            texts = [text_digest(row.text) for row in drawn.rows]
            todo = unanswered(store, definition, found.judges, texts)
        run = store.runs.to_resume(definition.screen, definition.digest)
        if run is not None and store.runs.account(run.id).candidates:
            coming = forecast.forecast(store, run, store.results.funnel(run.id))
            resume = f"run {run.key}: {forecast.in_words(coming)}"
    except EmptyDatabase:
        pass
    said = found.said + _kept_words(definition, todo)
    if (pilot := found.pilot) is None:
        guessed = guesses(definition, [row.text for row in drawn.rows])
        return Maker(definition, Workload(count, 0), None, guessed, todo), count, said, resume
    part = pilot.candidates == count
    if not part:
        said += f"; it was drawn from {pilot.candidates:,}"
    return (
        Maker(definition, Workload(count, pilot.size, part), pilot, (), todo),
        count,
        said,
        resume,
    )


def _kept_words(definition: "Screen", todo: "Sequence[float]") -> str:
    """At which tiers answers are kept already, in words."""
    kept = [
        f"{tier.name} {1 - share:.0%}"
        for tier, share in zip(definition.tiers, todo, strict=False)
        if share < 1
    ]
    return f"; of those who reach a tier, answers are kept of: {', '.join(kept)}" if kept else ""


def _goal(
    optimize: Goals | None, limits: "Limits", write: Path | None, *, ask: bool
) -> Goals | None:
    """What is wanted most: as given, or as a person at a terminal answers."""
    if optimize is not None:
        return optimize
    if ask and sys.stdin.isatty() and sys.stdout.isatty():
        words = "what is your priority: speed, cost, balance or quality? (empty: none) "
        said = input(words).strip().lower()
        return Goals(said) if said in set(Goals) else None
    wanted = (limits.seconds, limits.usd, limits.recall, write)
    return Goals.BALANCE if any(each is not None for each in wanted) else None


def _seconds(deadline: str | None) -> float | None:
    """A stretch of time as people write it, in seconds."""
    if deadline is None:
        return None
    units = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d)", deadline)
    if found is None:
        fail(f"--deadline '{deadline}' is no stretch of time; write 8h, 30min or 2d")
    return float(found[1]) * units[found[2]]


def _announce(definition: "Screen", drawn: "Sample", wanted: int, budget: Any) -> None:
    """What the pilot will do, and what it may cost, before it starts."""
    from flows.report.plan import guesses
    from tiers.planning.alternatives import Maker
    from tiers.planning.choice import count_range, usd_range
    from tiers.planning.estimate import Workload
    from tiers.types import TierError

    size = len(drawn.rows)
    if wanted > drawn.candidates:
        err.print(f"--sample {wanted:,} is more than the input holds: all {size:,} are taken")
    open_ = definition.model_copy(
        update={
            "tiers": tuple(tier.model_copy(update={"policy": None}) for tier in definition.tiers)
        }
    )
    guessed = guesses(definition, [row.text for row in drawn.rows])
    alone = [
        Maker(open_.model_copy(update={"tiers": (tier,)}), Workload(size, 0), None, [guess])
        .configured()
        .estimate
        for tier, guess in zip(open_.tiers, guessed, strict=True)
    ]
    own = (
        "none set"
        if budget is None
        else ", ".join(
            f"{value:g} {name}" for name, value in budget.model_dump(exclude_none=True).items()
        )
    )
    err.print(f"pilot of {size:,} candidates through {len(alone)} tiers; its budget: {own}")
    least = sum(found.usd.low or 0.0 for found in alone)
    if budget is not None and budget.usd is not None and least > budget.usd:
        pays = int(size * budget.usd / least)
        raise TierError(
            f"a pilot of {size:,} costs at least ${least:,.2f}, and its budget is "
            f"${budget.usd:,.2f}, which pays for about {pays:,}; write --sample {max(pays, 1)}, or "
            f"--usd {least * 1.2:,.2f}; nothing was asked"
        )
    for tier, found in zip(definition.tiers, alone, strict=True):
        err.print(
            f"  {tier.name}: {count_range(found.tiers[0].prompt_tokens)} tokens to read, "
            f"cost {usd_range(found.usd)}"
        )


def _show_pilot(measured: "Pilot", tiers: "Sequence[TierReport]", decided: "Decision") -> None:
    """The figures of each tier, a block a tier, and whether the cascade is good enough."""
    from flows.terminal import number
    from tiers.planning.choice import duration
    from tiers.planning.measured import ENOUGH

    out.print(
        f"pilot {measured.key}: {measured.size:,} of {measured.candidates:,} candidates, "
        f"{duration(measured.seconds)} of the tiers",
        style="bold",
    )
    if measured.tiers[0].busy > 1:
        out.print(
            f"the machine was busy before it began ({measured.tiers[0].busy:.1f} processes for "
            "each processor), so that plans are unsure of times by a factor of two"
        )
    for tier in tiers:
        rate = tier.candidates_per_second
        speed = "not measured, each answer was there" if rate is None else f"{number(rate)}/s"
        drift = "" if tier.drift is None else f", last tenth {tier.drift:.2f} of the first"
        out.print(f"\ntier {tier.tier}", style="bold")
        out.print(f"  speed      {speed}{drift}; model loaded in {tier.load_seconds:.1f} s")
        for name, each in (
            ("prompt", tier.prompt_tokens),
            ("own part", tier.own_tokens),
            ("reply", tier.completion_tokens),
        ):
            out.print(
                f"  {name:10} {each.low:,.0f} | {each.expected:,.0f} | {each.high:,.0f} tokens"
                + " (10th percentile, median, 90th)" * (name == "prompt")
            )
        if tier.max_tokens is not None:
            out.print(f"  max_tokens {tier.max_tokens} would cut {tier.cut:.1%} of the replies")
        if tier.mass is not None:
            out.print(f"  label mass {tier.mass:.3f} (median)")
        unread = f", {tier.unreadable} unreadable" if tier.unreadable else ""
        out.print(f"  scores     {' '.join(map(str, tier.scores))} (0 to 1 in tenths){unread}")
        out.print(f"  agreement  {_share(tier.agreement)} with the last tier, where it decides")
        fates = (
            "not measured"
            if tier.passed is None
            else ", ".join(f"{count} {name}" for name, count in tier.passed.items())
        )
        few = f" (fewer than {ENOUGH})" if tier.passed is None else ""
        out.print(f"  thresholds {tier.reached} reached it{few}: {fates}")
        first, last = _share(tier.pass_first), _share(tier.pass_last)
        out.print(f"  kept       {first} of the input's first tenth, {last} of its last")
    word = {True: "good enough", False: "not good enough", None: "not decided"}[decided.good]
    out.print(f"\n{word}: {decided.reason}", style="bold")
    out.print("these answers choose a plan and certify nothing: tamis calibrate does")


def _share(found: "Range") -> str:
    if found.expected is None:
        return "not measured"
    return f"{found.expected:.0%} ({found.low:.0%} to {found.high:.0%})"


def _show_plan(
    definition: "Screen", row: "Alternative", count: int, said: str, resume: str | None
) -> None:
    """The screen as configured, a line a tier."""
    from tiers.planning.choice import count_range, duration_range, usd_range

    out.print(f"plan of {definition.screen}: {count:,} candidates", style="bold")
    out.print(f"by {said}" if row.basis != "no pilot" else said)
    rows = [
        {
            "tier": tier.tier,
            "candidates": count_range(tier.candidates),
            "promoted": count_range(tier.promoted),
            "tokens read": count_range(tier.prompt_tokens),
            "written": count_range(tier.completion_tokens),
            "time": duration_range(tier.seconds),
            "cost": usd_range(tier.usd),
            "what limits it": tier.limit,
        }
        for tier in row.estimate.tiers
    ]
    print_rows(rows, False, empty="")
    found = row.estimate
    loads = f"; {found.loads} models are loaded" if found.loads else ""
    ranges = "hold 80 of 100" if row.basis == "measured" else "go from the least to the most"
    out.print(
        f"in all: {duration_range(found.seconds)}, cost {usd_range(found.usd)}{loads}; "
        f"ranges {ranges}"
    )
    unpriced = [stage.name for stage in row.stages if stage.price is None]
    if unpriced:
        out.print(f"no price is known of {', '.join(unpriced)}; write price: into the tier")
    if row.infeasible is not None:
        out.print(f"does not fit: {row.infeasible}")
    if resume is not None:
        out.print(resume)


def _show_rooflines(definition: "Screen", row: "Alternative") -> None:
    """What each local tier could do at most on this machine, beside what the pilot measured."""
    from statistics import fmean

    from tiers.planning.machine import look
    from tiers.planning.roofline import ceilings_for, explain
    from tiers.tier import job_of

    folder = settings().data_folder
    machine = look(folder)
    for position, stage in enumerate(row.stages):
        if not stage.local:
            continue
        job, tokens = job_of(definition, position), stage.tokens["expected"]
        own = float(fmean(tokens.prompt - tokens.cached))
        written = float(fmean(tokens.completion))
        pace = stage.pace
        took = sum(
            part["expected"] * each
            for part, each in ((pace.candidate, 1.0), (pace.read, own), (pace.written, written))
        )
        rows = explain(
            job, ceilings_for(job, machine, folder), own,
            written=written if written > 1 else 0.0, measured=1 / took if took > 0 else None,
        )  # fmt: skip
        for name, words in rows:
            out.print(f"{name:<20} {words}")
        out.print()


def _show_alternatives(rows: "Sequence[Alternative]") -> None:
    """A line an alternative; a star where nothing beats it."""
    from tiers.planning.choice import duration_range, usd_range

    count = rows[0].estimate.tiers[0].candidates.expected or 0.0
    lines = []
    for row in rows:
        found = row.estimate
        seconds = found.seconds.expected
        agreed = found.agreement
        lines.append(
            {
                "": "*" if row.pareto else "",
                "alternative": row.name,
                "a second": "unknown" if not seconds else f"{count / seconds:,.1f}",
                "time": duration_range(found.seconds),
                "cost": usd_range(found.usd),
                "agreement": "not measured" if agreed is None else f"{agreed:.3f}",
                "by": row.basis,
                "what limits it": row.infeasible or found.limit,
            }
        )
    print_rows(lines, False, empty="")
    if any(row.pareto for row in rows):
        out.print("*: no other that was measured is as good in time, cost and agreement")


def _as_json(
    definition: "Screen",
    rows: "Sequence[Alternative]",
    choice: "Choice | None",
    problem: str | None,
    count: int,
    said: str,
    resume: str | None,
    compare: bool,
) -> dict[str, Any]:
    from flows.report.plan import body_of, plain

    told: dict[str, Any] = {"screen": definition.screen, "plan": body_of(rows[0], count, said)}
    told |= {"resume": resume, "problem": problem, "choice": None}
    if compare:
        told["alternatives"] = [_row_json(row) for row in rows]
    if choice is not None:
        row = choice.chosen or choice.nearest
        told["choice"] = {
            "fits": choice.chosen is not None,
            "alternative": None if row is None else _row_json(row),
            "reason": choice.reason,
        }
    return plain(told)


def _row_json(row: "Alternative") -> dict[str, Any]:
    found = row.estimate
    return {
        "name": row.name, "by": row.basis, "drops": row.drops, "pareto": row.pareto,
        "infeasible": row.infeasible, "seconds": found.seconds, "usd": found.usd,
        "agreement": found.agreement, "recall": found.recall, "limit": found.limit,
    }  # fmt: skip


def _write(file: Path, target: Path, chosen: "Alternative", configured: "Alternative") -> None:
    """The chosen alternative as a screen file beside the one that was planned."""
    from tiers.planning.choice import duration_range
    from tiers.screenfile.edit import Change, edited

    if target.exists():
        fail(f"{target} exists already; name another file")
    if target.resolve().parent != file.resolve().parent:
        fail(
            f"{target} is in another folder, where names in the screen mean others; write it "
            f"beside {file}"
        )
    if chosen.asks:
        fail(
            f"'{chosen.name}' asks another question, of which nothing was measured; change ask: "
            "by hand, and run tamis pilot again"
        )
    cost = {tier.tier: duration_range(tier.seconds) for tier in configured.estimate.tiers}
    changes = {name: Change(f"left out; would have cost {cost[name]}") for name in chosen.drops}
    if chosen.cut is not None:
        why = "has the last word now; agreed most often with the last tier of before in a pilot"
        changes[chosen.stages[-1].name] = Change(why, chosen.cut)
    try:
        target.write_text(edited(file.read_text("utf-8"), changes), "utf-8")
    except ValueError as error:
        fail(f"{file} cannot be changed: {error}")
    except OSError as error:
        unwritable(target, error)
    changed = f"{len(changes)} changes, each with a comment" if changes else "no change"
    err.print(f"wrote {target}: {changed}")


def _show_kept(database: str | None, as_json: bool) -> None:
    from flows.report.plan import plans_kept

    rows = plans_kept(open_store(database))
    print_rows(rows, as_json, empty="no runs")
    if not as_json:
        out.print("of tiers of runs that are done: how many lie in their 80 % ranges")
