"""What a tier's work costs: the dated price table, or the price written in the screen file."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from tiers.screenfile.file import Screen
from tiers.screenfile.tiers import AnyTier, HttpTier, OpenAIBatchTier
from tiers.types import Price, TierError


def price_of(tier: AnyTier) -> Price | None:
    """The price of a tier; None where it is not known, which is not the same as nothing."""
    own = tier.price
    if own is not None and own.hour is not None:
        return Price(0.0, 0.0, 0.0, own.hour * tier.machines, "screen file")
    if own is not None and own.input is not None and own.output is not None:
        cached = own.input if own.cached_input is None else own.cached_input
        return Price(own.input, cached, own.output, 0.0, "screen file")
    if isinstance(tier, HttpTier | OpenAIBatchTier) and tier.urls == (tier.known.base_url,):
        return _listed(tier)  # other addresses than the provider's own have prices of their own
    return None


def _listed(tier: HttpTier | OpenAIBatchTier) -> Price | None:
    table = _table()
    provider = table["providers"].get(tier.profile)
    row = provider and provider["models"].get(tier.model)
    if not row:
        return None
    factor, how = 1.0, ""
    if isinstance(tier, OpenAIBatchTier):
        factor, how = provider["batch"], f", batch x {provider['batch']:g}"
    cached = row.get("cached_input", row["input"])
    source = f"{provider['source']}, {table['dated']}{how}"
    return Price(row["input"] * factor, cached * factor, row["output"] * factor, 0.0, source)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((files("tiers") / "prices.yaml").read_text("utf-8"))
    return table


def check_prices(definition: Screen) -> None:
    """Refuse a budget of money where a price is not known.

    Raises:
        TierError: naming every tier without a price.
    """
    of_run = definition.budget is not None and definition.budget.usd is not None
    unknown = [
        tier.name
        for tier in definition.tiers
        if (of_run or (tier.budget is not None and tier.budget.usd is not None))
        and price_of(tier) is None
    ]
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        raise TierError(
            f"a budget in usd needs the price of every tier that it covers; not known: {names}. "
            "Write price: {input: 0.10, output: 0.40} (per million tokens), price: {hour: 0.50} "
            "for a machine, or price: 0 if it costs nothing"
        )
