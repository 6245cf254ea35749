"""Prices, and what the work of a run has cost so far."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, text, update

from db.models import PriceRow, RunTierRow
from db.values import Spent

# As the view `funnel` has it, without the candidates: this is asked often.
_SPENT = text("""
    SELECT run_tier.position,
      COALESCE(SUM(judgement.prompt_tokens + judgement.completion_tokens), 0) AS tokens,
      COALESCE(SUM(((judgement.prompt_tokens - judgement.cached_tokens) * price.input
        + judgement.cached_tokens * price.cached_input
        + judgement.completion_tokens * price.output) / 1000000), 0.0) AS usd,
      COUNT(judgement.text_id) - COUNT(price.id) AS unpriced,
      run_tier.seconds AS seconds,
      COALESCE(MAX(now.hour), 0.0) AS usd_an_hour,
      COUNT(judgement.text_id) AS judged
    FROM run_tier
    LEFT JOIN price AS now ON now.id = run_tier.price_id
    LEFT JOIN judgement
      ON judgement.run_id = run_tier.run_id AND judgement.judge_id = run_tier.judge_id
    LEFT JOIN price ON price.id = judgement.price_id
    WHERE run_tier.run_id = :run_id
    GROUP BY run_tier.position, run_tier.seconds
    ORDER BY run_tier.position
""")


def set_price(
    connection: Connection, run_id: int, position: int, price: Sequence[float | str] | None
) -> int | None:
    """Say what a tier costs from now on; equal prices are one row."""
    price_id = None
    if price is not None:
        names = ("input", "cached_input", "output", "hour", "source")
        values = dict(zip(names, price, strict=True))
        same = [getattr(PriceRow, name) == value for name, value in values.items()]
        price_id = connection.scalar(select(PriceRow.id).where(*same).limit(1))
        if price_id is None:
            price_id = connection.scalar(insert(PriceRow).values(values).returning(PriceRow.id))
    connection.execute(
        update(RunTierRow)
        .where(RunTierRow.run_id == run_id, RunTierRow.position == position)
        .values(price_id=price_id)
    )
    return price_id


def spent(connection: Connection, run_id: int) -> list[Spent]:
    """What each tier has used up, in the order of the tiers."""
    return [
        Spent(
            int(row.tokens),
            None if row.unpriced else float(row.usd) + row.seconds * row.usd_an_hour / 3600,
            row.seconds,
            row.judged,
        )
        for row in connection.execute(_SPENT, {"run_id": run_id})
    ]


def mean_characters(connection: Connection, run_id: int) -> float:
    """Mean length of the first texts of a run."""
    query = text("""
        SELECT AVG(LENGTH(body)) FROM (
          SELECT text.body AS body
          FROM verdict
          JOIN candidate ON candidate.id = verdict.candidate_id
          JOIN text ON text.id = candidate.text_id
          WHERE verdict.run_id = :run_id
          LIMIT 1000
        ) AS first_texts
    """)
    return float(connection.scalar(query, {"run_id": run_id}) or 0.0)
