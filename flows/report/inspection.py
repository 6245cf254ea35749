"""Look before the leap: what a screen would ask, of which models, in how many tokens."""

from pathlib import Path
from typing import Any

from rich.console import Console

from flows.files.ingest import first_text, source_files
from flows.settings import load_keys
from tiers.opening import inspect
from tiers.prices import check_prices, price_of
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import RemoteTier
from tiers.tier import Job, job_of
from tiers.types import TierError


def inspect_screen(definition: Screen) -> dict[str, Any]:
    """The files, the first candidate, and for each tier its model, prompt and tokens.

    A problem with one part is listed under `problems` and does not hide the others.
    """
    problems: list[str] = []
    found: dict[str, Any] = {
        "screen": definition.screen,
        "files": [],
        "candidate": None,
        "tiers": [],
        "problems": problems,
    }
    text = ""
    load_keys(tier.key_name for tier in definition.tiers if isinstance(tier, RemoteTier))
    try:
        found["files"] = [_file(path) for path in source_files(definition.candidates.source)]
        key, text = first_text(definition.candidates)
        found["candidate"] = {"key": key, "text": text}
    except ScreenError as error:
        problems += error.problems
    try:
        check_prices(definition)
    except TierError as error:
        problems.append(str(error))
    for position in range(len(definition.tiers)):
        job = job_of(definition, position)
        try:
            found["tiers"].append(_tier(job, text))
        except TierError as error:
            problems.append(f"tiers[{position}]: {error}")
    return found


def show_inspection(found: dict[str, Any], console: Console) -> None:
    """Print an inspection for people."""
    for file in found["files"]:
        console.print(f"file   {file['name']}, {file['megabytes']:,.1f} MB")
    if found["candidate"]:
        console.print(f"first  candidate {found['candidate']['key']}")
    for tier in found["tiers"]:
        console.print(f"\ntier {tier['name']}: {tier['model']}", style="bold")
        if tier["price"] is not None:
            console.print(f"price {tier['price']}")
        if tier["key"] is not None:
            console.print(f"key {tier['key']}")
        if tier["prompt"] is None:
            continue
        if tier["shared_tokens"] is not None:
            console.print(
                f"{tier['shared_tokens']:,} tokens shared by all candidates, "
                f"{tier['own_tokens']:,} of this one"
            )
        console.print(tier["prompt"], style="dim")
    for problem in found["problems"]:
        console.print(problem, style="red")
    if not found["problems"]:
        console.print("\nall is well", style="green")


def _file(path: Path) -> dict[str, Any]:
    return {"name": str(path), "megabytes": round(path.stat().st_size / 1e6, 3)}


def _tier(job: Job, text: str) -> dict[str, Any]:
    inspection = inspect(job, text)
    return {"name": job.config.name, **inspection._asdict(), "price": _price(job)}


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
