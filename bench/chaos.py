"""Faults in the middle of runs: `python -m bench.chaos --trials 50 [--only disk_full] [--seed 0]`.

Each trial begins a run, does something to it at a random moment, resumes until the run is done,
and compares with the same run left alone: every candidate's verdict, judge by judge. The tiers
write a byte into a file for each answer that they give, kept or not, which shows what was paid
twice. Postgres, model servers and Ray clusters are real, and belong to the bench alone.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.chaos_world import PATIENCE, Lost, Proxy, Services, World, free_port, until
from bench.common import finish, machine, table
from db.query import ask

LOCK = "import flows.run.hold as h; h.LOCK_SECONDS = 6.0; "
CLOCK = (
    "import threading, time; real = time.time; "
    "threading.Timer({after}, lambda: setattr(time, 'time', lambda: real() - 3600)).start(); "
)
RESULTS = "SELECT key, verdict, tier, score FROM result ORDER BY key"
ANSWERS = "SELECT tier, key FROM judgement_detail"

Fault = Callable[[World], None]


def kill_flow(world: World) -> None:
    """Kill -9 of the flow, with its engines or without."""
    process = world.start()
    world.somewhere(process)
    if world.dice.random() < 0.5:
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def kill_engine(world: World) -> None:
    """Kill -9 of an engine's process."""
    process = world.start()
    world.somewhere(process, 0.5)
    engines = [each.pid for each in psutil.Process(process.pid).children()]
    kill(lambda one: one.pid in engines and "tiers.host" in one.cmdline())
    world.ended(process, 0)


def kill_ray_worker(world: World) -> None:
    """Kill -9 of a Ray actor."""
    process = world.start()
    world.somewhere(process, 0.3)
    kill(lambda one: one.name().startswith("ray::Worker"))
    world.ended(process, 0)


def kill_prefect(world: World) -> None:
    """Kill -9 of Prefect's server and of who tells it."""
    process = world.start()
    world.somewhere(process)
    data = str(world.folder / "data")
    kill(
        lambda one: (
            "flows.prefect_child" in one.cmdline()
            and one.environ().get("TAMIS_DATA_FOLDER") == data
        )
    )
    world.ended(process, 0)


def stop_postgres(world: World) -> None:
    """Postgres stopped at once, and started again."""
    process = world.start()
    world.somewhere(process)
    server = world.services.postgres
    os.kill(server.get_pid(), signal.SIGQUIT)
    time.sleep(world.dice.uniform(0.2, 2))
    until(lambda: server.get_pid() is None or not psutil.pid_exists(server.get_pid()))
    for _ in range(5):
        with suppress(subprocess.TimeoutExpired):  # the wheel waits ten seconds for a recovery
            server.ensure_postgres_running()
            break
    world.ended(process)


def cut_network(world: World) -> None:
    """The network to the database cut, and there again."""
    direct, proxy = world.database, Proxy(world.database)
    world.database = proxy.database
    process = world.start()
    world.somewhere(process)
    proxy.cut()
    time.sleep(world.dice.uniform(0.2, 3))
    proxy.mend()
    world.ended(process)
    proxy.close()
    world.database = direct


def kill_model_server(world: World) -> None:
    """A model server killed, and there again a little later."""
    serving = world.serve_model()
    process = world.start()
    goal = world.dice.randrange(20, world.count // 3)
    until(lambda: process.poll() is not None or world.requests() > goal)
    serving.kill()
    serving.wait()
    time.sleep(world.dice.uniform(0.2, 2))
    world.serve_model()
    world.ended(process, 0)


def freeze_holder(world: World) -> None:
    """SIGSTOP of the lock's holder until another has taken the run over, then SIGCONT."""
    world.prelude = LOCK
    first = world.start()
    world.somewhere(first, 0.3)
    first.send_signal(signal.SIGSTOP)
    time.sleep(6.5)
    second = world.start()
    until(
        lambda: (
            ask(world.database, "SELECT attempt FROM run")[0]["attempt"] == 2
            or second.poll() is not None
        )
    )
    first.send_signal(signal.SIGCONT)
    world.ended(first, 5)
    world.ended(second, 0)
    world.prelude = ""


def disk_full(world: World) -> None:
    """No file of the process may grow any more; later it may."""
    limit = world.dice.randrange(300_000, 300_000 + 400 * world.count)
    if world.ended(world.start(limit=limit)) == 0:
        raise Lost("the disk was not full")


def clock_back(world: World) -> None:
    """The clock of the process set back by an hour."""
    world.prelude = CLOCK.format(after=world.dice.uniform(1, 3))
    world.ended(world.start(), 0)
    world.prelude = ""


def two_at_once(world: World) -> None:
    """Two flows begin one key at the same time."""
    pair = [world.start(), world.start()]
    codes = sorted(world.ended(one) for one in pair)
    if codes != [0, 5]:
        raise Lost(f"two flows on one key ended with {codes}: {world.said()}")


def rows_before(world: World) -> None:
    """Rows inserted before those that were read, between a kill and the resume."""
    kill_flow(world)
    world.fill(world.count, 100)


def other_model(world: World) -> None:
    """Another model at the resume, which is refused; then the first one again."""
    kill_flow(world)
    world.write(salt="other")
    world.ended(world.start(), 2)
    world.write()


def skip_approval(world: World) -> None:
    """A calibration that ends while it waits for a person."""
    world.record = True
    tier = world.own
    paid = f"salt: a, paid: {world.paid}"
    (world.folder / "screen.yaml").write_text(
        "screen: try\ncandidates: {from: in.jsonl, key: id}\nrubric: any\ntiers:\n"
        f"  - {tier('first', paid, 'reject_below: 0.0')}\n"
        f"  - {tier('second', f'{paid}, seconds: 0.0001', 'accept_above: 0.5')}\n"
        "guarantee: {recall: 0.8, confidence: 0.8, against: second, labels: 400, approval: true}\n"
    )
    wait = ("calibrate", "screen.yaml", "--key", "one", "--wait", "300")
    process = world.start(*wait)
    until(lambda: "waits 300 s for a person" in world.said() or process.poll() is not None)
    process.send_signal(world.dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
    process.wait(PATIENCE)
    if world.ended(world.start(*wait[:-1], "1")) != 3 or ask(
        world.database, "SELECT 1 FROM approval"
    ):
        raise Lost(f"an approval was skipped: {world.said()}")
    world.ended(world.start(), 2)  # nothing may be screened by these thresholds
    world.ended(world.start("calibrate", "screen.yaml", "--key", "one", "--approve"), 0)


FAULTS: dict[str, Fault] = {
    one.__name__: one
    for one in (
        kill_flow, kill_engine, kill_ray_worker, kill_prefect, stop_postgres, cut_network,
        kill_model_server, freeze_holder, disk_full, clock_back, two_at_once, rows_before,
        other_model, skip_approval,
    )
}  # fmt: skip
ON_POSTGRES = {"stop_postgres", "cut_network"}
EITHER = {
    "kill_flow",
    "kill_engine",
    "freeze_holder",
    "two_at_once",
    "rows_before",
    "kill_model_server",
}


@dataclass(frozen=True)
class Trial:
    """What one fault cost."""

    fault: str
    lost: int
    """Candidates with another verdict than in the run that was left alone, or without one."""
    doubled: int
    again: int
    """Answers that were given and not kept, because they were on their way."""
    kept: int
    seconds: float
    """From the end of the fault to the end of the run."""
    locks: int


def main(arguments: list[str] | None = None) -> list[Trial]:
    """Run the trials and print their table; the trials.

    Raises:
        SystemExit: something was lost, doubled or left locked.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=6_000, help="candidates of each run")
    parser.add_argument("--only", choices=FAULTS, action="append")
    chosen = parser.parse_args(arguments)
    names = chosen.only or [name for name in FAULTS if name != "kill_ray_worker" or has_ray()]
    folder = Path(tempfile.mkdtemp(prefix="tamis-chaos-"))
    folder.chmod(0o755)  # Postgres has a user of its own
    trials = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        services = Services(folder, stack)
        for number in range(chosen.trials):
            name, seed = names[number % len(names)], chosen.seed + number
            try:
                trials.append(one_trial(services, name, seed, chosen.count))
            except Lost as fault:
                raise SystemExit(f"{name}, --seed {seed}: {fault}") from fault
            print(f"{number + 1}/{chosen.trials} {trials[-1]}", file=sys.stderr, flush=True)
    report(trials)
    return trials


def one_trial(services: Services, name: str, seed: int, count: int) -> Trial:
    """A fault in the middle of a run, then the run's end, compared with one that was left alone."""
    world = new_world(services, name, seed, count)
    world.fill(0, count)
    world.write()
    try:
        FAULTS[name](world)
        over = time.monotonic()
        until_done(world)
        seconds = time.monotonic() - over
        found = account(world)
        given = world.asked() + world.requests()
        wanted = undisturbed(world)
        lost = sum(found["results"].get(key) != row for key, row in wanted.items())
        lost += len(found["results"].keys() - wanted.keys())
        kept = found["answers"]
        return Trial(name, lost, found["doubled"], given - kept, kept, seconds, found["locks"])
    finally:
        world.end()


def new_world(services: Services, name: str, seed: int, count: int) -> World:
    """A folder, and a database of a kind that the fault is about."""
    dice = random.Random(seed)
    place = services.folder / f"trial-{seed}-{name}"
    place.mkdir()
    on_postgres = name in ON_POSTGRES or (name in EITHER and dice.random() < 0.5)
    database = services.new_database() if on_postgres else f"sqlite:///{place}/tamis.db"
    world = World(place, database, dice, services, count, record=name == "kill_prefect")
    if name == "kill_model_server":
        world.http = f"http://127.0.0.1:{free_port()}/v1"
    if name == "kill_ray_worker":
        world.workers = services.ray.address
    return world


def until_done(world: World) -> None:
    """Resume until the run is done.

    Raises:
        Lost: five resumes do not bring it there.
    """
    for _ in range(5):
        if world.ended(world.start()) == 0:
            return
    raise Lost(f"not done after five resumes: {world.said()}")


def account(world: World) -> dict[str, Any]:
    """What the database says of the run."""
    results = ask(world.database, RESULTS)
    answers = ask(world.database, ANSWERS)
    once = {(row["tier"], row["key"]) for row in answers}
    return {
        "results": {row["key"]: (row["verdict"], row["tier"], row["score"]) for row in results},
        "doubled": len(answers) - len(once) + len(results) - len({row["key"] for row in results}),
        "answers": len(answers),
        "locks": len(ask(world.database, "SELECT 1 FROM run WHERE lock_owner IS NOT NULL")),
    }


def undisturbed(like: World) -> dict[str, Any]:
    """The results of the same screen over the same candidates, in a run that is left alone."""
    place = like.folder / "alone"
    place.mkdir()
    for name in ("screen.yaml", "in.jsonl"):
        shutil.copy(like.folder / name, place / name)
    alone = World(place, f"sqlite:///{place}/tamis.db", like.dice, like.services, like.count)
    try:
        if "guarantee:" in (place / "screen.yaml").read_text():
            calibrate = ("calibrate", "screen.yaml", "--key", "one", "--approve")
            alone.ended(alone.start(*calibrate), 0)
        alone.ended(alone.start(), 0)
        results: dict[str, Any] = account(alone)["results"]
        return results
    finally:
        alone.end()


def kill(which: Callable[[psutil.Process], bool]) -> None:
    """End processes at once.

    Raises:
        Lost: there is none like that.
    """
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if which(one):
                one.kill()
                found.append(one)
    if not found:
        raise Lost("nothing was there to be killed")


def has_ray() -> bool:
    with suppress(ImportError):
        import ray  # noqa: F401

        return True
    return False


def report(trials: list[Trial]) -> None:
    """The table, a line a fault.

    Raises:
        SystemExit: something was lost, doubled or left locked.
    """
    print(machine() + "\n")
    rows = []
    for name in dict.fromkeys(one.fault for one in trials):
        of = [one for one in trials if one.fault == name]
        worst = max(of, key=lambda one: one.again / one.kept)
        rows.append(
            [
                name.replace("_", " "), len(of), sum(one.lost for one in of),
                sum(one.doubled for one in of), f"{worst.again:,} of {worst.kept:,}",
                round(1 + worst.again / worst.kept, 4), max(one.seconds for one in of),
                sum(one.locks for one in of),
            ]
        )  # fmt: skip
    header = (
        "fault", "trials", "lost", "doubled", "asked again, worst", "of the answers kept",
        "seconds to the end, worst", "locks left",
    )  # fmt: skip
    table(header, rows)
    finish("chaos", {"trials": len(trials), "rows": rows})
    if any(one.lost or one.doubled or one.locks for one in trials):
        raise SystemExit("something was lost, doubled or left locked")


if __name__ == "__main__":
    main()
