"""Machines that share only a database: each screens a part, and together they screen everybody once."""

import json

import pytest

from .project import Project
from .test_run import tier


def test_two_shards_at_once_judge_everybody_once(project: Project, postgres_url: str) -> None:
    paid = project.folder / "paid"
    slow = tier("first", "reject_below: 0.3", options=f"paid: {paid}, seconds: 0.001")
    project.write(slow, tier("second", "accept_above: 0.5", options="salt: other"), count=400)
    arguments = ["run", "screen.yaml", "--key", "monday", "--json", "--database", postgres_url]
    both = [project.start(*arguments, "--shard", f"{part}/2") for part in (1, 2)]
    told = [json.loads(process.communicate(timeout=240)[0]) for process in both]
    assert [one["run"] for one in told] == ["monday-1of2", "monday-2of2"]
    assert sum(one["candidates"] for one in told) == 400
    assert all(150 < one["candidates"] < 250 for one in told)
    assert paid.stat().st_size == 400, "nobody is judged twice"
    code, out, _ = project.tamis("status", "monday", "--json", "--database", postgres_url)
    assert code == 0
    assert [row["run"] for row in json.loads(out)] == ["monday-1of2", "monday-2of2"]
    sql = "SELECT COUNT(DISTINCT key) AS n FROM result WHERE run LIKE 'monday-%' AND verdict <> 'pending'"
    code, out, _ = project.tamis("sql", sql, "--json", "--database", postgres_url)
    assert json.loads(out) == [{"n": 400}]


@pytest.mark.parametrize(
    ("arguments", "policy", "said"),
    [
        (["--key", "a", "--shard", "9/8"], "reject_below: 0.3", "write a number from 1 to 8"),
        (["--key", "a", "--shard", "half"], "reject_below: 0.3", "write --shard 2/8"),
        (["--shard", "1/2"], "reject_below: 0.3", "write --key monday --shard 2/8"),
        (["--key", "a", "--shard", "1/2"], "top: 10", "the best of a part are not the best of all"),
        (["--key", "a", "--shard", "1/2"], "reject_below: 0.3", "SQLite is for one"),
    ],
)
def test_what_no_shard_can_do_is_refused(
    project: Project, arguments: list[str], policy: str, said: str
) -> None:
    project.write(tier("first", policy), tier("second", "accept_above: 0.5"), count=10)
    code, _, err = project.tamis("run", "screen.yaml", "--database", project.database, *arguments)
    assert (code, said in " ".join(err.split())) == (2, True), err
