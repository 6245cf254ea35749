"""A random sample of the input, and how many rows it has, in one pass."""

import random
from itertools import chain
from typing import NamedTuple

from db.store import BadRow, Row
from flows.files.ingest import checked, to_rows
from flows.files.sources import sources
from flows.files.tables import Record
from tiers.screenfile.faults import ScreenError
from tiers.screenfile.file import STDIN, Candidates


class Sample(NamedTuple):
    """Candidates that were drawn, in the order of the input."""

    rows: list[Row]
    candidates: int
    """About how many the input holds that can be judged."""
    source: str


def sampled(candidates: Candidates, size: int, seed: int) -> Sample:
    """Draw candidates that can be judged; all of them where there are not so many.

    Of a shard, the sample is one of the whole input, of which it is a part by lot.

    Raises:
        ScreenError: the input cannot be read twice, or holds no candidate that can be judged.
    """
    if candidates.source == STDIN:
        said = "candidates.from: standard input is read once; write it to a file to plan by it"
        raise ScreenError("-", [said])
    lot = random.Random(seed)  # noqa: S311 - a sample, no secret
    drawn: list[tuple[int, str, Record]] = []
    rows = 0
    for source in sources(candidates.source):
        for record in checked(source, candidates):
            if isinstance(record, BadRow):
                continue
            rows += 1
            if len(drawn) < size:
                drawn.append((rows, source.name, record))
            elif (place := lot.randrange(rows)) < size:
                drawn[place] = (rows, source.name, record)
    drawn.sort(key=lambda one: one[0])
    made = chain.from_iterable(to_rows([one], candidates, name) for _, name, one in drawn)
    good = [row for row in made if isinstance(row, Row) and row.problem is None]
    if not good:
        raise ScreenError(candidates.address, ["candidates.from: holds no candidate to judge"])
    parts = 1 if candidates.shard is None else int(candidates.shard.partition("/")[2])
    count = round(rows * len(good) / len(drawn) / parts)
    return Sample(good, max(count, 1), candidates.address)
