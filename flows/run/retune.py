"""Settings of a run that may change while it is unfinished, because they move no score."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tiers.prices import check_prices
from tiers.screenfile.file import Screen
from tiers.screenfile.limits import BudgetSection
from tiers.screenfile.tiers import AnyTier, HttpTier
from tiers.types import TierError


def retuned(
    definition: Screen,
    *,
    tier: str | None,
    concurrency: int | None = None,
    budget_usd: float | None = None,
    urls: Sequence[str] = (),
) -> Screen:
    """The definition with other settings.

    Args:
        definition: the screen.
        tier: whose settings; None for the run's budget, and for the concurrency of all tiers.
        concurrency: requests under way at each address; None leaves it.
        budget_usd: what may be spent in all; None leaves it.
        urls: the addresses of the tier; none leaves them.

    Raises:
        TierError: there is no such tier, or it has no such setting.
    """
    names = [one.name for one in definition.tiers]
    if tier is not None and tier not in names:
        raise TierError(f"no tier '{tier}'; write one of: {', '.join(names)}")
    tiers = list(definition.tiers)
    if concurrency is not None:
        tiers = _at_once(tiers, tier, concurrency)
    if urls:
        tiers = _moved(tiers, tier, urls)
    changed: dict[str, object] = {}
    if budget_usd is not None and tier is None:
        changed["budget"] = _budget(definition.budget, budget_usd)
    elif budget_usd is not None:
        place = names.index(str(tier))
        budget = _budget(tiers[place].budget, budget_usd)
        tiers[place] = tiers[place].model_copy(update={"budget": budget})
    found = definition.model_copy(update={"tiers": tuple(tiers), **changed})
    check_prices(found)
    if found.digest != definition.digest:
        raise TierError(
            "the addresses belong to who judges there, as the tier has no version: another address "
            "may serve another model; write version: NAME in the tier, and start a new run"
        )
    return found


def urls_of(config: Mapping[str, Any], position: int) -> tuple[str, ...]:
    """The addresses of a tier in the stored settings of a run."""
    tier = Screen.model_validate(config).tiers[position]
    return tier.urls if isinstance(tier, HttpTier) else ()


def _moved(tiers: list[AnyTier], tier: str | None, urls: Sequence[str]) -> list[AnyTier]:
    """The tiers, one of them at other addresses."""
    http = [one for one in tiers if isinstance(one, HttpTier) and tier in (None, one.name)]
    if len(http) != 1:
        names = ", ".join(one.name for one in tiers if isinstance(one, HttpTier)) or "none"
        raise TierError(
            "addresses are those of one tier with backend: http; name it with --tier, here one "
            f"of: {names}"
        )
    settings = http[0].model_dump(by_alias=True) | {"base_url": list(urls)}
    try:
        moved = HttpTier.model_validate(settings)
    except ValidationError as error:
        raise TierError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    return [moved if one is http[0] else one for one in tiers]


def _at_once(tiers: list[AnyTier], tier: str | None, concurrency: int) -> list[AnyTier]:
    asked = [isinstance(one, HttpTier) and tier in (None, one.name) for one in tiers]
    if not any(asked):
        http = ", ".join(one.name for one in tiers if isinstance(one, HttpTier)) or "none"
        raise TierError(
            f"only tiers with backend: http have a concurrency, here {http}; leave --concurrency "
            "out, or name one of them with --tier"
        )
    return [
        one.model_copy(update={"concurrency": concurrency}) if theirs else one
        for one, theirs in zip(tiers, asked, strict=True)
    ]


def _budget(before: BudgetSection | None, usd: float) -> BudgetSection:
    return (before or BudgetSection(usd=usd)).model_copy(update={"usd": usd})
