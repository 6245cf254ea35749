"""What the runs of a screen cost, one below the other: is each cheaper than the last."""

from typing import Any

from db.store import Store


def costs_of_runs(store: Store, screen: str) -> list[dict[str, Any]]:
    """A row for each run of the screen that has candidates, oldest first.

    `classifier` is the version in it, `removed` how many it rejected, `asked` how many a model was
    asked about (stored answers included), `asked_share` that by candidates, `paid` the answers of
    models that this run paid for, `usd` what they cost, None where a price is not known.
    """
    rows = []
    for status in store.runs.newest(1000):
        run = status.run
        if run.screen != screen:
            continue
        funnel = store.results.funnel(run.id)
        if not funnel or not funnel[0].reached:
            continue
        tiers = {tier["name"]: tier for tier in run.config["tiers"]}
        own = [one for one in funnel if tiers[one.tier]["backend"] == "classifier"]
        models = [one for one in funnel if one not in own]
        dollars = [one.usd for one in models]
        rows.append(
            {
                "run": run.key,
                "state": str(run.state),
                "classifier": ", ".join(str(tiers[one.tier].get("version")) for one in own),
                "candidates": funnel[0].reached,
                "removed": sum(one.rejected for one in own),
                "asked": models[0].reached,
                "asked_share": round(models[0].reached / funnel[0].reached, 4),
                "paid": sum(one.judged for one in models),
                "usd": None if None in dollars else round(sum(usd or 0 for usd in dollars), 6),
            }
        )
    return rows[::-1]
