"""Charts as SVG by matplotlib, without its window and its fonts; colours are variables of CSS.

Drawn with placeholders for colours, because matplotlib knows no variables: the page that holds a
chart says what they are, in light and in dark.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 72
"""Units of an inch: one is a pixel where the page is as wide as the drawing."""
WIDTH, HEIGHT = 370, 215
NAMES = (
    "ink", "soft", "line", "paper", "accent", "accepted", "rejected", "review", "failed", "pending",
    "one", "two", "three", "four", "five",
)  # fmt: skip
HUE = {name: f"#0a{number:02x}f7" for number, name in enumerate(NAMES)}
"""Placeholders, each a colour that no chart means."""
SERIES = ("one", "two", "three", "four", "five")
VERDICTS = ("accepted", "review", "failed", "pending", "rejected")
"""From the top of the funnel's last column to its bottom."""
LIGHT = {
    "ink": "#1c2733", "soft": "#5d6b79", "line": "#d9dfe5", "paper": "#ffffff",
    "accent": "#2563a8", "accepted": "#00845f", "rejected": "#aab4be", "review": "#d98e00",
    "failed": "#c2410c", "pending": "#8a5a96",
    "one": "#2563a8", "two": "#d98e00", "three": "#00845f", "four": "#8a5a96", "five": "#c2410c",
}  # fmt: skip
DARK = {
    "ink": "#e6ebf0", "soft": "#9aa8b5", "line": "#333e49", "paper": "#1a222b",
    "accent": "#6ea8e6", "accepted": "#2dbd91", "rejected": "#5f6c79", "review": "#f0b03c",
    "failed": "#f27b4b", "pending": "#c08fcc",
    "one": "#6ea8e6", "two": "#f0b03c", "three": "#2dbd91", "four": "#c08fcc", "five": "#f27b4b",
}  # fmt: skip
"""Told apart by the colour-blind, too: Okabe and Ito's hues, with other brightness."""
FAR = 4.0
FEW = 6
"""Points of a curve that are marked, since a line of so few may be none."""
"""Times what was expected, beyond which the axis of a plan is logarithmic."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "tamis",
    "font.size": 11,
    "axes.edgecolor": HUE["line"],
    "axes.labelcolor": HUE["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "y",
    "grid.color": HUE["line"],
    "grid.linewidth": 0.7,
    "text.color": HUE["ink"],
    "xtick.color": HUE["soft"],
    "ytick.color": HUE["soft"],
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.6,
}


class Flow(NamedTuple):
    """One tier of the funnel."""

    tier: str
    reached: int
    promoted: int
    outcomes: dict[str, int]
    """By the names in `VERDICTS`."""


class Span(NamedTuple):
    """A figure of a plan beside what came of it, as multiples of what was expected."""

    name: str
    low: float
    high: float
    actual: float


class Line(NamedTuple):
    """A curve; None breaks it."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def theme(names: dict[str, str]) -> str:
    """Colours as variables of CSS."""
    return "".join(f"--{name}:{colour};" for name, colour in names.items())


def alone(svg: str) -> str:
    """A chart as a file of its own, which no page gives its colours."""
    style = (
        f"<style>svg{{{theme(LIGHT)}--font:sans-serif;background:var(--paper)}}"
        f"@media(prefers-color-scheme:dark){{svg{{{theme(DARK)}}}}}</style>"
    )
    at = svg.index(">") + 1
    return f"{svg[:at]}{style}{svg[at:]}\n"


def funnel(tiers: Sequence[Flow], width: int = WIDTH) -> str:
    """Candidates from tier to tier, and what became of them in the end."""
    height = 300 if width > WIDTH else 320

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        _Funnel(axes, tiers, width, height).draw()

    return _svg(draw, "funnel of the tiers", width, height, None)


def scores(bins: Sequence[dict[str, int]], low: float | None, high: float | None, name: str) -> str:
    """How many candidates got which score at a tier, by what became of them there.

    Args:
        bins: of equal width over [0, 1]; in each, counts by `promoted` and the names of verdicts.
        low: `reject_below`.
        high: `accept_above`.
        name: of the tier.
    """
    width = 1 / len(bins)
    kinds = [kind for kind in ("promoted", *VERDICTS) if any(each.get(kind) for each in bins)]
    totals = [sum(each.values()) for each in bins]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        below = [0.0] * len(bins)
        for kind in kinds:
            counts = [each.get(kind, 0) for each in bins]
            axes.bar(
                [width * (i + 0.5) for i in range(len(bins))], counts, width * 0.86, below,
                color=HUE["accent" if kind == "promoted" else kind], label=kind, linewidth=0,
            )  # fmt: skip
            below = [a + b for a, b in zip(below, counts, strict=True)]
        if max(totals) > 50 * sorted(totals)[len(totals) // 2]:
            axes.set_yscale("symlog", linthresh=10)
        for bound, words in ((low, "reject below"), (high, "accept above")):
            if bound is not None:
                axes.axvline(bound, color=HUE["ink"], linewidth=1, linestyle=(0, (3, 2)))
                right = bound > 0.5
                axes.annotate(
                    f"{words} {bound:.3g} ", (bound, 1.0 if words[0] == "r" else 0.9),
                    xycoords=("data", "axes fraction"), va="top", ha="right" if right else "left",
                    xytext=(-3 if right else 3, 0), textcoords="offset points", fontsize=9.5,
                )  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_xlabel("score")
        _counts(axes)
        _legend(axes, len(kinds))

    return _svg(draw, f"scores of tier {name}")


def reliability(tiers: Iterable[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Mean score to the right, share of positives upwards: on the diagonal scores are chances."""
    found = list(tiers)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), color=HUE["line"], linestyle="--", linewidth=1)
        for number, (name, points) in enumerate(found):
            axes.plot(
                [x for x, _ in points], [y for _, y in points], marker="o", markersize=4.5,
                color=HUE[SERIES[number % len(SERIES)]], label=name, gid=f"tier-{number}",
            )  # fmt: skip
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="mean score", ylabel="share of positives")
        axes.grid(visible=True)
        axes.legend(loc="upper left", labelcolor="linecolor", handlelength=1.2)

    return _svg(draw, "reliability of the scores", height=300)


def plan(spans: Sequence[Span]) -> str:
    """What was planned as a bar, what came as a dot; 1 is what was expected."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, one in enumerate(reversed(spans)):
            inside = one.low <= one.actual <= one.high
            axes.plot(
                (one.low, one.high), (place, place), color=HUE["line"], linewidth=9,
                solid_capstyle="butt",
            )  # fmt: skip
            axes.plot(one.actual, place, "o" if inside else "D", markersize=6.5,
                      color=HUE["accent" if inside else "failed"])  # fmt: skip
        axes.axvline(1, color=HUE["soft"], linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_yticks(range(len(spans)), [one.name for one in reversed(spans)])
        most = max(each for one in spans for each in (one.high, one.actual, 1.0))
        axes.set_xlim(0, 1.1 * most)
        if most > FAR:
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(0, 1.6 * most)
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.set(xlabel="times what was expected", ylim=(-0.6, len(spans) - 0.4))
        axes.tick_params("y", length=0)

    return _svg(draw, "planned and actual", height=75 + 26 * len(spans))


def stages(tiers: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> str:
    """How a tier's time was spent, as shares of it."""
    wholes = [max(sum(each[i] for each in seconds.values()), 1e-9) for i in range(len(tiers))]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left = [0.0] * len(tiers)
        for number, (name, values) in enumerate(seconds.items()):
            shares = [value / whole for value, whole in zip(values, wholes, strict=True)]
            colour = HUE[(*SERIES, "rejected", "soft")[number % 7]]
            axes.barh(range(len(tiers)), shares, 0.55, left, color=colour, label=name, linewidth=0)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set_yticks(range(len(tiers)), tiers)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        axes.tick_params("y", length=0)
        axes.spines["left"].set_visible(False)
        rows = -(-len(seconds) // 3)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.05, 1.0), ncols=3, handlelength=1,
            handleheight=1, columnspacing=1.2, borderpad=0.2 * rows,
        )  # fmt: skip

    return _svg(draw, "where the time went", height=110 + 34 * len(tiers))


def curves(lines: Sequence[Line], unit: str, title: str) -> str:
    """Something over the hours, minutes or seconds of a run; `x` in seconds."""
    last = max((max(line.x) for line in lines if line.x), default=0.0)
    word, each = next(
        (word, each) for word, each in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if last >= 2 * each or each == 1
    )  # fmt: skip

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, line in enumerate(lines):
            y = [float("nan") if value is None else value for value in line.y]
            axes.plot(
                [x / each for x in line.x], y, color=HUE[SERIES[number % len(SERIES)]],
                label=line.name, marker="o" if len(y) <= FEW else "", markersize=3.5,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(last / each, 1e-3))
        axes.set_xlabel(word)
        axes.set_ylabel(unit)
        _counts(axes)
        if len(lines) > 1:
            _legend(axes, len(lines))

    return _svg(draw, title, height=210)


class _Funnel:
    """Bands between columns: accepted ones along the top, rejected ones along the bottom."""

    def __init__(self, axes: "Axes", tiers: Sequence[Flow], width: int, height: int) -> None:
        self._axes, self._tiers = axes, tiers
        self._top, self._bottom = 44, height - 14
        self._bar = 9
        left, right = 4, width - 118
        step = (right - left) / len(tiers)
        self._x = [left + step * i for i in range(len(tiers) + 1)]
        self._gap = 13
        room = self._bottom - self._top - self._gap * (len(VERDICTS) - 1)
        self._unit = room / max(tiers[0].reached, 1)
        axes.set(xlim=(0, width), ylim=(height, 0))

    def draw(self) -> None:
        ends = self._ends()
        top = float(self._top)
        lowest = dict.fromkeys(VERDICTS, 0.0)
        for verdict in ("accepted", "review", "failed", "pending"):
            lowest[verdict] = ends[verdict][0]
        lowest["rejected"] = sum(ends["rejected"])
        for i, tier in enumerate(self._tiers):
            y = top
            self._node(i, top, tier)
            accepted = self._size(tier.outcomes["accepted"])
            lowest["accepted"] = self._band(i, y, "accepted", lowest["accepted"], accepted)
            y += accepted
            following = top + accepted + self._gap * bool(accepted)
            promoted = self._size(tier.promoted)
            if i + 1 < len(self._tiers):
                self._path(self._x[i] + self._bar, y, self._x[i + 1], following, promoted, "accent")
            y += promoted
            for verdict in ("review", "failed", "pending"):
                size = self._size(tier.outcomes[verdict])
                lowest[verdict] = self._band(i, y, verdict, lowest[verdict], size)
                y += size
            # From the bottom upwards, so that the first tier's rejects lie lowest.
            size = self._size(tier.outcomes["rejected"])
            lowest["rejected"] -= size
            self._band(i, y, "rejected", lowest["rejected"], size)
            top = following
        self._totals(ends)

    def _size(self, count: int) -> float:
        return max(count * self._unit, 1.2) if count else 0.0

    def _ends(self) -> dict[str, tuple[float, float]]:
        """Top and height of each verdict in the last column."""
        found, y = {}, float(self._top)
        for verdict in VERDICTS:
            size = sum(self._size(tier.outcomes[verdict]) for tier in self._tiers)
            found[verdict] = (y, size)
            y += size + self._gap * 1.6 * bool(size)
        rest = max(0.0, self._bottom - found["rejected"][0] - found["rejected"][1])
        found["rejected"] = (found["rejected"][0] + rest, found["rejected"][1])
        return found

    def _band(self, tier: int, y: float, verdict: str, to: float, size: float) -> float:
        if size:
            self._path(self._x[tier] + self._bar, y, self._x[-1], to, size, verdict)
        return to + size

    def _path(self, x0: float, y0: float, x1: float, y1: float, size: float, hue: str) -> None:
        middle = x0 + min((x1 - x0) / 2, 70)
        end = min(x1, middle + (middle - x0))
        points = [
            (x0, y0), (middle, y0), (middle, y1), (end, y1), (x1, y1),
            (x1, y1 + size), (end, y1 + size), (middle, y1 + size), (middle, y0 + size),
            (x0, y0 + size), (x0, y0),
        ]  # fmt: skip
        codes = [
            Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO,
            Path.LINETO, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY,
        ]  # fmt: skip
        self._axes.add_patch(
            PathPatch(Path(points, codes), facecolor=HUE[hue], alpha=0.42, linewidth=0)
        )

    def _node(self, i: int, top: float, tier: Flow) -> None:
        x, height = self._x[i], max(self._size(tier.reached), 1.5)
        self._axes.bar(x, height, self._bar, top, align="edge", color=HUE["ink"], linewidth=0)
        self._axes.text(x, 14, tier.tier, va="center", fontweight="bold")
        self._axes.text(x, 30, f"{tier.reached:,}", va="center", color=HUE["soft"], fontsize=10.5)

    def _totals(self, ends: dict[str, tuple[float, float]]) -> None:
        x = self._x[-1]
        for verdict, (y, size) in ends.items():
            if not size:
                continue
            count = sum(tier.outcomes[verdict] for tier in self._tiers)
            self._axes.bar(x, size, self._bar, y, align="edge", color=HUE[verdict], linewidth=0)
            self._axes.text(x + 15, y + size / 2 - 7, f"{count:,}", va="center", fontweight="bold")
            self._axes.text(
                x + 15, y + size / 2 + 7, verdict, va="center", color=HUE["soft"], fontsize=10.5
            )


def _counts(axes: "Axes") -> None:
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.spines["left"].set_visible(False)
    axes.tick_params("y", length=0)


def _short(value: float, _place: object = None) -> str:
    """A count on an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _legend(axes: "Axes", columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=min(columns, 4), handlelength=0.9,
        handleheight=0.9, columnspacing=1.2, borderpad=0.1,
    )  # fmt: skip


def _svg(
    draw: Callable[[Figure], None],
    title: str,
    width: int = WIDTH,
    height: int = HEIGHT,
    layout: Literal["constrained"] | None = "constrained",
) -> str:
    """Draw, and put variables in place of colours."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width / POINTS, height / POINTS), layout=layout)
        draw(figure)
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:height|width)="[\d.]+pt"', "", svg)
    svg = re.sub(r' id="(?!p[0-9a-f]{10}"|m[0-9a-f]{10}"|tier-)[^"]*"', "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "var(--font)", svg)
    for name, placeholder in HUE.items():
        svg = svg.replace(placeholder, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def _attribute(text: str) -> str:
    return re.sub(r'[<>&"]', " ", text)
