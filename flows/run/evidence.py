"""A yes whose quotes do not stand in the text goes to a person."""

from collections.abc import Mapping, Sequence

from db.quotes import Quote
from db.store import Store
from tiers.quotes import KINDS, Passages, quotes_of
from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import AnyTier, ModelTierSection
from tiers.types import Judgement

SHOWN = 60
"""Characters of a quote in a message."""


def quoted_fields(config: AnyTier) -> Mapping[str, str]:
    """The fields of a tier's reply that have to stand in the text; empty for most tiers."""
    ask = config.ask if isinstance(config, ModelTierSection) else None
    if not isinstance(ask, JsonAsk):
        return {}
    return {name: kind for name, kind in ask.fields.items() if kind.strip() in KINDS}


def check_quotes(
    store: Store, judge_id: int, fields: Mapping[str, str], judgements: Sequence[Judgement]
) -> list[Judgement]:
    """Look for the quotes of replies in their texts, and keep where they stand.

    Returns:
        The judgements; a yes without a quote, or with one that is not there, has no score any
        more, so that its verdict is review. The same question would be answered the same again.
    """
    read = [one for one in judgements if one.score is not None]
    texts = store.quotes.texts(one.id for one in read)
    found = {one.id: _found(one, texts[one.id], fields) for one in read}
    store.quotes.record(judge_id, list(found), [quote for each in found.values() for quote in each])
    return [_checked(one, found[one.id]) if one.id in found else one for one in judgements]


def _found(judgement: Judgement, text: str, fields: Mapping[str, str]) -> list[Quote]:
    said = quotes_of(judgement.reading, fields)
    passages = Passages(text) if said else None
    return [
        Quote(judgement.id, field, quote, passages.find(quote) if passages is not None else [])
        for field, quote in said
    ]


def _checked(judgement: Judgement, quotes: Sequence[Quote]) -> Judgement:
    if judgement.score is None or judgement.score < 0.5:
        return judgement
    missing = [one.quote for one in quotes if not one.places]
    if quotes and not missing:
        return judgement
    why = (
        f"the text does not hold what the reply quotes: '{missing[0][:SHOWN]}'"
        if missing
        else "the reply says yes and quotes nothing"
    )
    return judgement._replace(score=None, error=why)
