"""Look before the leap: what a screen would ask, of which models, in how many tokens."""

from dataclasses import dataclass, field

from rich.console import Console

from flows.files.after import check_after
from flows.files.ingest import first_text
from flows.files.sources import sources
from flows.files.writing import WritingError
from flows.settings import load_keys
from tiers.cluster import require_head
from tiers.opening import inspect
from tiers.prices import check_prices, price_of
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import EngineTier, RemoteTier
from tiers.tier import Job, job_of
from tiers.types import TierError


@dataclass(frozen=True)
class File:
    """A file of candidates, or another source of them."""

    name: str
    megabytes: float | None
    """None where the size is not known."""


@dataclass(frozen=True)
class TierInspection:
    """What one tier would do with the first candidate."""

    name: str
    model: str
    prompt: str | None
    shared_tokens: int | None
    """Tokens that all candidates share; None where the server counts them."""
    own_tokens: int | None
    key: str | None
    """Which variable goes to which hosts as the key, in words."""
    price: str | None


@dataclass
class ScreenInspection:
    """What a screen would ask: the JSON of `tamis check`."""

    screen: str
    files: list[File] = field(default_factory=list)
    candidate: dict[str, str] | None = None
    """Key and text of the first one."""
    tiers: list[TierInspection] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What is wrong; a problem with one part does not hide the others."""


def inspect_screen(definition: Screen) -> ScreenInspection:
    """The files, the first candidate, and for each tier its model, prompt and tokens."""
    found = ScreenInspection(definition.screen)
    text = ""
    load_keys(tier.key_name for tier in definition.tiers if isinstance(tier, RemoteTier))
    try:
        found.files = [
            File(one.address, None if one.bytes is None else round(one.bytes / 1e6, 3))
            for one in sources(definition.candidates.source)
        ]
        key, text = first_text(definition.candidates)
        found.candidate = {"key": key, "text": text}
    except ScreenError as error:
        found.problems += [f"{error.source}: {problem}" for problem in error.problems]
    try:
        if definition.after is not None:
            check_after(definition.after)
    except WritingError as error:
        found.problems.append(str(error))
    try:
        check_prices(definition)
    except TierError as error:
        found.problems.append(str(error))
    for position in range(len(definition.tiers)):
        job = job_of(definition, position)
        try:
            if isinstance(job.config, EngineTier) and job.config.workers is not None:
                require_head(job.config.workers.ray, job.config.name)
            seen = inspect(job, text)._asdict()
            found.tiers.append(TierInspection(job.config.name, **seen, price=_price(job)))
        except TierError as error:
            found.problems.append(f"tiers[{position}]: {error}")
    return found


def show_inspection(found: ScreenInspection, console: Console) -> None:
    """Print an inspection for people."""
    for file in found.files:
        size = "" if file.megabytes is None else f", {file.megabytes:,.1f} MB"
        console.print(f"file   {file.name}{size}")
    if found.candidate:
        console.print(f"first  candidate {found.candidate['key']}")
    for tier in found.tiers:
        console.print(f"\ntier {tier.name}: {tier.model}", style="bold")
        if tier.price is not None:
            console.print(f"price {tier.price}")
        if tier.key is not None:
            console.print(f"key {tier.key}")
        if tier.prompt is None or found.candidate is None:
            continue
        if tier.shared_tokens is not None:
            console.print(
                f"{tier.shared_tokens:,} tokens shared by all candidates, "
                f"{tier.own_tokens:,} of this one"
            )
        console.print(tier.prompt, style="dim")
    for problem in found.problems:
        console.print(problem, style="red")
    if not found.problems:
        console.print("\nall is well", style="green")


def _price(job: Job) -> str | None:
    """What the tier costs, in words; None where it is not known."""
    price = price_of(job.config)
    if price is None:
        return None
    if price.hour or not max(price[:3]):
        return f"{price.hour:g} USD an hour ({price.source})"
    return (
        f"{price.input:g} USD a million tokens read, {price.cached_input:g} from the cache, "
        f"{price.output:g} written ({price.source})"
    )
