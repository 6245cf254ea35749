"""Quotes of replies, and where they stand in the texts that were judged."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import delete, insert, select, text

from db.bulk import Noun, storable
from db.models import QuoteRow, TextRow

_COUNTS = text("""
    SELECT
      COUNT(*) AS quotes,
      COUNT(DISTINCT quote.text_id) AS texts,
      COUNT(quote.start) AS found,
      COUNT(DISTINCT CASE WHEN quote.start IS NULL THEN quote.text_id END) AS without
    FROM quote
    JOIN judgement
      ON judgement.judge_id = quote.judge_id AND judgement.text_id = quote.text_id
    WHERE judgement.run_id = :run_id AND quote.occurrence = 0
""")


class Quote(NamedTuple):
    """A quote of a judge's reply about a text."""

    text_id: int
    field: str
    """Of the reply."""
    quote: str
    places: list[tuple[int, int]]
    """Where it stands: start and end in characters of the text; empty where it does not."""


class QuoteCounts(NamedTuple):
    """Of the answers that a run paid for."""

    quotes: int
    texts: int
    """With a quote."""
    found: int
    without: int
    """Texts with a quote that does not stand in them."""


class Quotes(Noun):
    """The quotes of all replies, by judge and text."""

    def texts(self, text_ids: Iterable[int]) -> dict[int, str]:
        """What was judged."""
        query = select(TextRow.id, TextRow.body).where(TextRow.id.in_(list(text_ids)))
        with self._reading() as connection:
            return dict(connection.execute(query).tuples().all())

    def record(self, judge_id: int, text_ids: Sequence[int], quotes: Iterable[Quote]) -> None:
        """Keep the quotes about these texts, in place of what an earlier reply had."""
        rows = []
        numbers = dict.fromkeys(text_ids, 0)
        for one in quotes:
            number = numbers[one.text_id]
            numbers[one.text_id] += 1
            rows += [
                {"judge_id": judge_id, "text_id": one.text_id, "number": number, "occurrence": i,
                 "field": one.field, "quote": storable(one.quote), "start": start, "stop": stop}
                for i, (start, stop) in enumerate(one.places or [(None, None)])
            ]  # fmt: skip
        here = (QuoteRow.judge_id == judge_id, QuoteRow.text_id.in_(list(text_ids)))
        with self._writing() as connection:
            connection.execute(delete(QuoteRow).where(*here))
            if rows:
                connection.execute(insert(QuoteRow), rows)

    def counts(self, run_id: int) -> QuoteCounts:
        """How many quotes the run's answers hold, and how many of them stand in the text."""
        with self._reading() as connection:
            return QuoteCounts(*connection.execute(_COUNTS, {"run_id": run_id}).one())
