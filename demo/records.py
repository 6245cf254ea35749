"""Made-up applicants for one role, a tenth of whom fit it.

python -m demo.records --count 20000 --seed 7 --format parquet --output applicants.parquet
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from random import Random
from typing import IO

import duckdb
import orjson

from demo.task import Difficulty, Kind, Pay, Place, Record, Role, Skill, Years, dice, draw_record

ROLE = Role(
    "data engineer",
    {
        "years": Years(5, "5 or more years of work"),
        "skill": Skill.named("a relational database", "knows"),
        "place": Place.named("Scandinavia", "Remote only."),
        "pay": Pay(84, "salary up to 84k"),
    },
)
RUBRIC = ROLE.rubric
"""Role: data engineer. Needs: 5 or more years of work; knows a relational database; based in
Scandinavia or remote; salary up to 84k."""

FITTING = 0.10
NEAR_MISS = 0.15
"""Share of applicants who lack exactly one thing; others meet each criterion by chance."""
MET_BY_CHANCE = 0.4


@dataclass(frozen=True, slots=True)
class Applicant:
    """One row of the demo. `truth` is for measuring: no judge may see it."""

    applicant_id: str
    name: str
    title: str
    resume: str
    truth: bool

    @property
    def text(self) -> str:
        """What judges read."""
        return f"{self.name}, {self.title}. {self.resume}"


def applicants(count: int, seed: int) -> Iterator[Applicant]:
    """That many applicants, drawn as they are asked for; a shorter draw is a longer one's start."""
    for number, record in enumerate(islice(population(seed), count)):
        yield Applicant(f"A{number:07d}", record.name, record.title, record.resume, record.fits)


def population(seed: int) -> Iterator[Record]:
    """Applicants without end, with what each criterion's truth is."""
    random = dice(seed)
    difficulty = Difficulty()
    while True:
        yield draw_record(random, ROLE, _draw_met(random), difficulty)


def _draw_met(random: Random) -> dict[Kind, bool]:
    kinds = list(ROLE.needs)
    group = random.random()
    if group < FITTING:
        return dict.fromkeys(kinds, True)
    if group < FITTING + NEAR_MISS:
        lacking = random.choice(kinds)
        return {kind: kind != lacking for kind in kinds}
    while True:
        met = {kind: random.random() < MET_BY_CHANCE for kind in kinds}
        if not all(met.values()):
            return met


def write_jsonl(rows: Iterable[Applicant], output: IO[str]) -> None:
    """One JSON object a line."""
    for row in rows:
        output.write(orjson.dumps(row).decode() + "\n")


def write_csv(rows: Iterable[Applicant], output: IO[str]) -> None:
    """With a header; `truth` is `true` or `false`."""
    writer = csv.DictWriter(
        output, [field.name for field in fields(Applicant)], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({**asdict(row), "truth": str(row.truth).lower()} for row in rows)


def write_parquet(rows: Iterable[Applicant], path: Path) -> None:
    """Through a temporary CSV file: DuckDB then streams, and memory stays flat at any count."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "applicants.csv")
        with table.open("w", newline="") as output:
            write_csv(rows, output)
        with duckdb.connect() as connection:
            connection.read_csv(str(table), header=True, dtype={"truth": "BOOLEAN"}).write_parquet(
                str(path)
            )


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """None reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.records",
        description="Make up applicants for the demo's role; a tenth of them fit it.",
        epilog="example: python -m demo.records --count 20000 --format csv --output applicants.csv",
    )
    parser.add_argument("--count", type=int, default=20_000, help="applicants (default: 20000)")
    parser.add_argument(
        "--seed", type=int, default=7, help="equal seeds, equal people (default: 7)"
    )
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--output", default="-", help="file; - is standard output (default)")
    chosen = parser.parse_args(arguments)
    if chosen.format == "parquet" and chosen.output == "-":
        parser.error("parquet cannot go to standard output; add --output applicants.parquet")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    """None reads the command line."""
    chosen = parsed(arguments)
    rows = applicants(chosen.count, chosen.seed)
    if chosen.format == "parquet":
        write_parquet(rows, Path(chosen.output))
        return
    write = write_jsonl if chosen.format == "jsonl" else write_csv
    with _opened(chosen.output) as output:
        write(rows, output)


def _opened(path: str) -> AbstractContextManager[IO[str]]:
    return nullcontext(sys.stdout) if path == "-" else Path(path).open("w", newline="")


if __name__ == "__main__":
    main()
