"""A run, or two, as one HTML file: aggregates and pictures, each with the SQL that gives it.

The file needs nothing from anywhere. No row of the input is in it but the few candidates about
which tiers disagree most.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from db import aggregates as asks
from db.aggregates import BINS, Told
from db.store import PEOPLE, LabelSource, Run, Store, rubric_digest
from flows.guarantee.audit import in_words
from flows.guarantee.certificate import Certificate, certificate_in_use
from flows.report import charts
from flows.report.charts import Flow, Line, Span
from flows.report.plan import figures_of, held, planned_words
from flows.report.summary import Summary, account_line, summary
from flows.terminal import number, visible

WIDE = 1060
"""Of the funnel on a large screen, in pixels; on a small one it is as wide as other charts."""
POINTS = 300
"""Of a curve at most."""
KIND = 110
"""Characters of a reason."""


class Card(NamedTuple):
    """A headline number, and the section that says how it was got."""

    label: str
    value: str
    words: str
    section: str
    kind: str = ""


@dataclass
class Section:
    """Pictures and a table about one thing; the first column of a table is words."""

    id: str
    title: str
    words: str
    sql: list[str]
    charts: list[Markup] = field(default_factory=list)
    wide: Markup | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    text_columns: int = 1
    """How many of the table's columns are words; the others are numbers."""


class _Made:
    """A run's figures, each asked for once."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run
        funnel = store.results.funnel(run.id)
        self.summary = summary(store, run, funnel)
        plan = store.plans.of(run.id)
        self.held = None if plan is None else held(plan, funnel, run.state)
        self.certificate = certificate_in_use(store, run)
        self.told = _told(run, self.certificate)
        self.funnel_sql = store.aggregates.sql(asks.FUNNEL, run)
        self.tiers = [row._asdict() for row in funnel]


def report(store: Store, run: Run) -> str:
    """The page of one run."""
    made = _Made(store, run)
    found = _found(made)
    sections = [
        _funnel(made),
        _scores(made),
        _reliability(made),
        _plan(made),
        _costs(made, found),
        _reasons(made),
        _resources(made),
        _certificate(made),
        _disputed(made),
    ]
    one = made.summary
    return _page(
        title=f"{run.screen} · {run.key}",
        state=one.state,
        words=[account_line(one), *([one.reason] if one.reason else [])],
        cards=_cards(made, found),
        sections=[each for each in sections if each is not None],
    )


def comparison(store: Store, before: Run, after: Run) -> str:
    """The page of two runs, side by side."""
    first, second = _Made(store, before), _Made(store, after)
    changed = store.aggregates.ask(asks.CHANGED, after, before=before)
    both = [row for row in changed.rows if row["text"] in ("same", "changed")]
    same = sum(row["candidates"] for row in both if row["was"] == row["is_now"])
    common = sum(row["candidates"] for row in both)
    other = common - same
    coming = Counter({row["text"]: 0 for row in changed.rows})
    for row in changed.rows:
        coming[row["text"]] += row["candidates"]
    cards = [
        Card("agreement", _share(same, common), f"of {common:,} candidates in both", "changes"),
        Card("other verdict", f"{other:,}", "candidates", "changes"),
        Card("cost", _usd(second.summary.usd), f"USD; before {_usd(first.summary.usd)}", "runs"),
        Card("time", _time(second.summary.seconds),
             f"of work; before {_time(first.summary.seconds)}", "runs"),
        Card("new", f"{coming['new']:,}", f"candidates; {coming['gone']:,} gone", "changes"),
    ]  # fmt: skip
    runs = Section(
        "runs", "The two runs", "Each figure of the earlier run beside that of the later one.",
        [first.funnel_sql, second.funnel_sql],
        header=("", before.key, after.key), rows=_side_by_side(first.summary, second.summary),
    )  # fmt: skip
    changes = Section(
        "changes", "Verdicts", "What became of candidates in one run and in the other. "
        f"One by one: tamis changes {before.key} {after.key}", [changed.sql],
        header=(f"in {before.key}", f"in {after.key}", "text", "candidates"), text_columns=3,
        rows=[
            (row["was"] or "-", row["is_now"] or "-", row["text"], f"{row['candidates']:,}")
            for row in changed.rows
        ],
    )  # fmt: skip
    funnels = []
    for made in (first, second):
        section = _funnel(made)
        section.id, section.title = f"funnel-{made.run.id}", f"Funnel of {made.run.key}"
        funnels.append(section)
    return _page(
        title=f"{before.key} → {after.key}", state="", words=[f"screen {after.screen}"],
        cards=cards, sections=[runs, changes, *funnels],
    )  # fmt: skip


def _page(**values: Any) -> str:
    template = files("flows.report").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    return environment.from_string(template).render(
        **values,
        light=Markup(charts.theme(charts.LIGHT)),  # noqa: S704 - colours of ours
        dark=Markup(charts.theme(charts.DARK)),  # noqa: S704
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _told(run: Run, certificate: Certificate | None) -> Told | None:
    """Whose labels there may be; None where the last tier's have no certificate yet."""
    tiers, rubric = run.config.get("tiers", ()), rubric_digest(run.config.get("rubric", ""))
    against = (run.config.get("guarantee") or {}).get("against", PEOPLE)
    if against == PEOPLE:
        return Told(rubric, LabelSource.PERSON, None, len(tiers))
    if certificate is None:
        return None
    return Told(rubric, LabelSource.TIER, certificate.reviewer, len(tiers) - 1)


class _Found(NamedTuple):
    """Labels of those who were accepted."""

    labels: int
    positives: int
    sql: str


def _found(made: _Made) -> _Found | None:
    if made.told is None:
        return None
    answer = made.store.aggregates.ask(asks.FOUND, made.run, told=made.told)
    for row in answer.rows:
        if row["verdict"] == "accepted":
            return _Found(row["labels"], row["positives"], answer.sql)
    return None


def _cards(made: _Made, found: _Found | None) -> list[Card]:
    one, certificate = made.summary, made.certificate
    cards = [
        Card("accepted", f"{one.accepted:,}", f"of {one.candidates:,} candidates", "funnel",
             "accepted"),
        Card("cost", _usd(one.usd), "USD", "costs"),
        Card("time", _time(one.seconds), "of work", "costs"),
    ]  # fmt: skip
    audit = one.audit
    if audit is not None and audit.recall is not None:
        low, high = audit.recall
        words = f"by audit, confidence {audit.confidence:g}"
        cards.insert(2, Card("recall", f"{low:.2f} to {high:.2f}", words, "certificate"))
    elif certificate is not None and certificate.status == "certified":
        words = f"confidence {certificate.confidence:g}, against {certificate.against}"
        cards.insert(
            2, Card(certificate.kind, f"≥ {certificate.certified_bound:.3f}", words, "certificate")
        )
    else:
        cards.insert(2, Card("recall", "not measured", "no certificate", "funnel"))
    people = made.told is not None and made.told.source is LabelSource.PERSON
    # The last tier's labels decide who is accepted: they would praise themselves.
    if people and found is not None and found.labels:
        words = f"{found.positives:,} of {found.labels:,} labelled ones are positive"
        cards.append(Card("precision", _share(found.positives, found.labels), words, "costs"))
    left = one.review + one.failed
    words = f"{one.review:,} review, {one.failed:,} failed; {one.pending:,} pending"
    cards.append(Card("for a person", f"{left:,}", words, "reasons"))
    return cards


def _funnel(made: _Made) -> Section:
    flows = [
        Flow(visible(row["tier"]), row["reached"], row["promoted"],
             {name: row[name] for name in charts.VERDICTS})
        for row in made.tiers
    ]  # fmt: skip
    shown = ["reached", "judged", "reused", "promoted", *reversed(charts.VERDICTS)]
    shown = [name for name in shown if any(row[name] for row in made.tiers)]
    section = Section(
        "funnel", "Funnel", "How many candidates each tier saw, and what it did with them.",
        [made.funnel_sql, made.store.aggregates.sql(asks.ACCOUNT, made.run)],
        header=("tier", *shown, "tokens read", "cached", "written"),
        rows=[
            (row["tier"], *(f"{row[name]:,}" for name in shown), f"{row['prompt_tokens']:,}",
             _share(row["cached_tokens"], row["prompt_tokens"]), f"{row['completion_tokens']:,}")
            for row in made.tiers
        ],
    )  # fmt: skip
    if flows and flows[0].reached:
        section.wide = _drawn(charts.funnel(flows, WIDE))
        section.charts = [_drawn(charts.funnel(flows))]
    return section


def _scores(made: _Made) -> Section | None:
    answer = made.store.aggregates.ask(asks.SCORES, made.run)
    versions = made.store.policies.versions(made.run.id)
    policies = {one.tier: one.thresholds for one in versions if one.in_use}
    drawn = []
    for tier, rows in groupby(answer.rows, lambda row: row["tier"]):
        bins: list[dict[str, int]] = [{} for _ in range(BINS)]
        for row in rows:
            bins[row["bin"]][row["became"]] = row["candidates"]
        low, high = policies.get(tier, (None, None))
        drawn.append(_drawn(charts.scores(bins, low, high, visible(tier)), visible(tier)))
    if not drawn:
        return None
    return Section(
        "scores", "Scores", "How many candidates got which score at each tier, by what became of "
        "them there; a dashed line is a threshold. Where one bin is much higher than others, the "
        "axis is logarithmic. "
        + "Labelled candidates follow their label, whatever their score."
        * bool(made.certificate is not None), [answer.sql], charts=drawn,
    )  # fmt: skip


def _reliability(made: _Made) -> Section | None:
    if made.told is None:
        return None
    answer = made.store.aggregates.ask(asks.RELIABILITY, made.run, told=made.told)
    if not answer.rows:
        return None
    tiers = [(tier, list(rows)) for tier, rows in groupby(answer.rows, lambda row: row["tier"])]
    curves = [
        (visible(tier), [(row["mean_score"], float(row["positive_share"])) for row in rows])
        for tier, rows in tiers
    ]
    rows = []
    for tier, bins in tiers:
        labels = sum(row["labels"] for row in bins)
        gap = sum(
            row["labels"] * abs(row["mean_score"] - float(row["positive_share"])) for row in bins
        )
        positives = sum(row["labels"] * float(row["positive_share"]) for row in bins)
        rows.append((tier, f"{labels:,}", f"{positives:,.0f}", f"{gap / labels:.4f}"))
    return Section(
        "reliability", "Reliability", "Scores held against labels: on the dashed line a score is "
        "the chance of a yes. No threshold depends on it.", [answer.sql],
        charts=[_drawn(charts.reliability(curves))],
        header=("tier", "labels", "positive", "calibration error"), rows=rows,
    )  # fmt: skip


def _plan(made: _Made) -> Section | None:
    """What the run was expected to take beside what it took."""
    if not made.held:
        return None
    sql = made.store.aggregates.sql(asks.PLAN, made.run)
    shown = figures_of(made.held)
    spans, rows = [], []
    for one in made.held:
        for name in shown:
            (low, expected, high), actual = one.planned[name], one.actual[name]
            mark = {True: "inside", False: "outside", None: "-"}[one.inside[name]]
            words = "unknown" if actual is None else planned_words(name, [actual] * 3)
            rows.append((one.tier, name, planned_words(name, one.planned[name]), words, mark))
            if expected and actual is not None and one.inside[name] is not None:
                spread = (low or 0.0) / expected, (high or 0.0) / expected
                spans.append(Span(f"{visible(one.tier)}, {name}", *spread, actual / expected))
    words = "What the run was expected to take when it began, beside what it took."
    if spans:
        words += (
            " A bar is the range of the plan, in which 80 % of actual figures are to lie; the mark "
            "is what came: a dot inside, a diamond outside."
        )
    return Section(
        "plan", "Planned | actual", words,
        [sql, made.funnel_sql], charts=[_drawn(charts.plan(spans))] if spans else [],
        header=("tier", "figure", "planned", "actual", ""), rows=rows, text_columns=2,
    )  # fmt: skip


def _costs(made: _Made, found: _Found | None) -> Section:
    rows: list[Sequence[str]] = []
    for row in made.tiers:
        passed = row["promoted"] + row["accepted"]
        rows.append(_cost_row(row["tier"], row["usd"], row["seconds"], row["reached"], passed))
    one = made.summary
    rows.append(_cost_row("all tiers", one.usd, one.seconds, one.candidates, one.accepted))
    words = "Passed are those whom a tier promoted or accepted; of all tiers, the accepted."
    sql = [made.funnel_sql]
    if found is not None and found.positives:
        true = one.accepted * found.positives / found.labels
        each = "" if one.usd is None else f"{_usd(1000 * one.usd / max(true, 1))} USD and "
        each += _time(1000 * one.seconds / max(true, 1))
        words += (
            f" 1,000 true positives found took {each}: of "
            f"{found.labels:,} labelled ones among the accepted {found.positives:,} are positive, "
            f"which makes about {true:,.0f}."
        )
        sql.append(found.sql)
    else:
        words += " What a true positive cost is not measured: nobody has labelled an accepted one."
    return Section(
        "costs", "Cost and time", words, sql,
        header=("tier", "USD", "for 1,000 candidates", "for 1,000 passed", "seconds",
                "ms a candidate", "ms one passed"),
        rows=rows,
    )  # fmt: skip


def _cost_row(
    name: str, usd: float | None, seconds: float, reached: int, passed: int
) -> Sequence[str]:
    def each(whole: float | None, count: int, words: Callable[[float], str]) -> str:
        return "-" if whole is None or not count else words(whole / count)

    def thousand(value: float) -> str:
        return _usd(1000 * value)

    def milliseconds(value: float) -> str:
        return f"{1000 * value:,.1f}"

    return (
        name, _usd(usd), each(usd, reached, thousand), each(usd, passed, thousand),
        f"{seconds:,.1f}",
        each(seconds, reached, milliseconds), each(seconds, passed, milliseconds),
    )  # fmt: skip


def _reasons(made: _Made) -> Section:
    answer = made.store.aggregates.ask(asks.REASONS_TOLD, made.run)
    kinds: Counter[tuple[str, str, str]] = Counter()
    for row in answer.rows:
        kind = re.sub(r"\d[\d,.]*", "#", row["reason"])[:KIND]
        kinds[row["place"], row["verdict"], kind] += row["candidates"]
    return Section(
        "reasons", "Errors and reasons", "Why candidates failed, or are left to a person; numbers "
        "in a reason are written #." if kinds else "Nobody failed, and nobody is left to a person "
        "with a reason.", [answer.sql],
        header=("at", "verdict", "reason", "candidates") if kinds else (), text_columns=3,
        rows=[(*kind, f"{count:,}") for kind, count in kinds.most_common(25)],
    )  # fmt: skip


def _resources(made: _Made) -> Section | None:
    answer = made.store.aggregates.ask(asks.SAMPLES, made.run)
    if not answer.rows:
        return None
    stages = made.store.aggregates.ask(asks.STAGES, made.run)
    drawn = [_stages(stages.rows)] if stages.rows else []
    clock = _clock(answer.rows)
    tiers = [row for row in answer.rows if row["tier"] is not None]
    for column, unit, title, size in (
        ("cpu", "cores", "processor cores busy", 1.0), ("memory", "GB", "memory", 1e9),
        ("gpu", "share", "GPU busy", 1.0), ("gpu_memory", "GB", "GPU memory", 1e9),
    ):  # fmt: skip
        seen = {clock[_when(row)]: row[column] for row in answer.rows}
        if any(value is not None for value in seen.values()):
            y = [None if value is None else value / size for value in seen.values()]
            drawn.append(_curves([Line(title, list(seen), y)], f"{title}, {unit}"))
    for column, title in (("judged", "candidates a second"), ("tokens", "tokens a second")):
        drawn.append(_curves(_rates(tiers, clock, column), title))
    cached = _rates(tiers, clock, "cached_tokens", "prompt_tokens")
    if any(any(line.y) for line in cached):
        drawn.append(_curves(cached, "share of tokens from the cache"))
    return Section(
        "resources", "Resources", f"{len(clock):,} looks at the run's processes while it worked; "
        "of the judge's time, reading and writing tokens are told by the engine's own rates.",
        [answer.sql, stages.sql], charts=drawn,
    )  # fmt: skip


def _when(row: dict[str, Any]) -> tuple[int, int]:
    return row["attempt"], row["number"]


def _clock(rows: Iterable[dict[str, Any]]) -> dict[tuple[int, int], float]:
    """Seconds of work at each look; the time between two attempts is left out."""
    found: dict[tuple[int, int], float] = {}
    ended = 0.0
    for _, group in groupby(rows, lambda row: row["attempt"]):
        looks = {_when(row): datetime.fromisoformat(str(row["at"])) for row in group}
        first = min(looks.values())
        found |= {when: ended + (at - first).total_seconds() for when, at in looks.items()}
        ended = max(found.values()) + 1.0
    return found


def _rates(
    rows: Sequence[dict[str, Any]],
    clock: dict[tuple[int, int], float],
    column: str,
    per: str | None = None,
) -> list[Line]:
    """How fast a count grew at each tier: in a second, or beside another count."""
    lines: dict[str, tuple[list[float], list[float | None]]] = defaultdict(lambda: ([], []))
    for tier in dict.fromkeys(row["tier"] for row in rows):
        before: dict[str, Any] | None = None
        for row in (each for each in rows if each["tier"] == tier):
            x, y = lines[tier]
            at = clock[_when(row)]
            again = before is None or before["attempt"] != row["attempt"]
            start = dict.fromkeys((column, per or ""), 0) if again else before
            last = clock[_when(before)] if before is not None and not again else None
            grown = row[column] - (start or {})[column]
            of = row[per] - (start or {})[per] if per else None if last is None else at - last
            x.append(at)
            y.append(grown / of if of else None)
            before = row
    return [Line(visible(tier), x, y) for tier, (x, y) in lines.items()]


def _curves(lines: Sequence[Line], title: str) -> Markup:
    thin = []
    for line in lines:
        step = -(-len(line.x) // POINTS) or 1
        thin.append(Line(line.name, line.x[::step], line.y[::step]))
    return _drawn(charts.curves(thin, "", title), title)


def _stages(rows: Sequence[dict[str, Any]]) -> Markup:
    """Seconds by what was done; what the engine did meanwhile follows from its rates."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        left = row["judging"]
        for name, tokens, rate in (
            ("prefilling", row["evaluated"], row["prompt_rate"]),
            ("decoding", row["written"], row["decode_rate"]),
        ):
            spent = min(left, float(tokens) / rate) if rate else 0.0
            seconds[name].append(spent)
            left -= spent
        seconds["storing"].append(row["storing"])
        seconds["reading"].append(row["reading"])
        seconds["loading"].append(row["loading"])
        rest = "tokenizing, waiting" if row["prompt_rate"] else "judging"
        for name in ("tokenizing, waiting", "judging"):
            seconds[name].append(left if name == rest else 0.0)
    used = {name: values for name, values in seconds.items() if any(values)}
    title = "where the time of each tier went"
    return _drawn(charts.stages([visible(row["tier"]) for row in rows], used), title)


def _certificate(made: _Made) -> Section | None:
    found, audit = made.certificate, made.summary.audit
    if found is None and audit is None:
        return None
    sql = made.store.aggregates.sql(asks.CERTIFICATE, made.run)
    section = Section("certificate", "Certificate", "", [sql], header=("", ""), text_columns=2)
    if found is not None:
        section.words = f"{found.message}. In full: tamis certificate {made.run.key}"
        section.rows = [
            ("promise", str(found.promise)),
            ("made", f"{found.made} by {found.author}, for run {found.run}"),
            ("labels", f"{found.labels_used:,}, of them positive {found.positives_found:,}"),
            ("certified bound", f"{found.certified_bound:.4f}"),
            ("left to the last tier", f"{found.left_to_last_tier:,} of {found.candidates:,}"),
            *(
                (f"thresholds of {one.tier}", " to ".join(
                    "-" if each is None else f"{each:.6g}" for each in one.values))
                for one in found.thresholds
            ),
        ]  # fmt: skip
    if audit is not None:
        section.rows = [*section.rows, ("audit", in_words(audit).removeprefix("audit: "))]
    return section


def _disputed(made: _Made) -> Section | None:
    answer = made.store.aggregates.ask(asks.DISPUTED_CANDIDATES, made.run)
    if not answer.rows:
        return None
    return Section(
        "disputed", "Most disputed candidates", "Those about whom two tiers, one after the other, "
        "disagree most: look at them first. All of one: tamis explain "
        f"{made.run.key} KEY", [answer.sql],
        header=("key", "text", "verdict", "tier", "score", "next tier", "score"), text_columns=3,
        rows=[
            (row["key"], row["text"], row["verdict"], row["tier"], f"{row['score']:.3f}",
             row["next_tier"], f"{row['next_score']:.3f}")
            for row in answer.rows
        ],
    )  # fmt: skip


def _side_by_side(first: Summary, second: Summary) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        (name, f"{getattr(first, name):,}", f"{getattr(second, name):,}")
        for name in ("candidates", "accepted", "rejected", "review", "failed", "pending")
    ]
    rows.append(("USD", _usd(first.usd), _usd(second.usd)))
    rows.append(("seconds of work", f"{first.seconds:,.1f}", f"{second.seconds:,.1f}"))
    tiers = [{tier.name: tier for tier in one.tiers} for one in (first, second)]
    for name in dict.fromkeys([*tiers[0], *tiers[1]]):
        pair = [one.get(name) for one in tiers]
        for what in ("judged", "promoted", "seconds"):
            cells = [
                "-" if one is None
                else f"{one.seconds:,.1f}" if what == "seconds" else f"{getattr(one, what):,}"
                for one in pair
            ]  # fmt: skip
            rows.append((f"{name}: {what}", *cells))
    return rows


def _drawn(svg: str, title: str = "") -> Markup:
    """A chart: matplotlib escapes the words in it."""
    caption = Markup("<figcaption>{}</figcaption>").format(title) if title else Markup("")
    return Markup("<figure>{}{}</figure>").format(caption, Markup(svg))  # noqa: S704


def _usd(dollars: float | None) -> str:
    if dollars is None:
        return "unknown"
    return number(dollars) if dollars else "0.00"


def _share(part: int, whole: int) -> str:
    return "-" if not whole else f"{part / whole:.1%}"


def _time(seconds: float) -> str:
    """A stretch of time in units that people use."""
    if seconds < 1:
        return f"{1000 * seconds:,.1f} ms"
    if seconds < 120:
        return f"{seconds:,.1f} s"
    minutes, hours = round(seconds / 60), round(seconds // 3600)
    return f"{minutes} min" if minutes < 120 else f"{hours:,} h {minutes - 60 * hours:02} min"
