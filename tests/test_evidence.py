"""Quotes of replies: found exactly where they stand, in any script; a yes without them is no yes."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.engine import check_ready, open_engine
from db.store import Store
from flows.run.evidence import check_quotes
from tests.openai_server import ModelServer, is_match
from tests.test_store import ingested, rows, waiting
from tiers.prompt import field_schema, question_for
from tiers.quotes import Passages, normalised, quotes_of
from tiers.screenfile.file import load_screen
from tiers.types import Judgement


@pytest.mark.parametrize(
    ("text", "quote", "stands"),
    [
        ("He said: \u201cI\u2019ve led  a\nteam\u201d \u2013 twice", "\"I've led a team\" - twice", "\u201cI\u2019ve led  a\nteam\u201d \u2013 twice"),
        ("over five\u00ad years", "five years", "five\u00ad years"),
        ("un\u00adder the roof", "under the", "un\u00adder the"),
        ("at the Cafe\u0301 Nord", "Caf\u00e9 Nord", "Cafe\u0301 Nord"),
        ("at the Caf\u00e9 Nord", "Cafe\u0301 Nord", "Caf\u00e9 Nord"),
        ("\ufb01ne work", "fine", "\ufb01ne"),
        ("\u5979\u5e26\u9886\u4e86\uff11\uff12\u4eba\u7684\u56e2\u961f\uff0c\u5728\u67cf\u6797", "12\u4eba\u7684\u56e2\u961f,\u5728\u67cf\u6797", "\uff11\uff12\u4eba\u7684\u56e2\u961f\uff0c\u5728\u67cf\u6797"),
        ("\u0642\u0627\u062f\u062a \u0641\u0631\u064a\u0642\u0627\u064b \u0643\u0628\u064a\u0631\u0627", "\u0641\u0631\u064a\u0642\u0627\u064b \u0643\u0628\u064a\u0631\u0627", "\u0641\u0631\u064a\u0642\u0627\u064b \u0643\u0628\u064a\u0631\u0627"),
        ("\u05d4\u05d9\u05d0 \u05e0\u05d9\u05d4\u05dc\u05d4\u00a0\u05e6\u05d5\u05d5\u05ea \u2019", "\u05e0\u05d9\u05d4\u05dc\u05d4 \u05e6\u05d5\u05d5\u05ea '", "\u05e0\u05d9\u05d4\u05dc\u05d4\u00a0\u05e6\u05d5\u05d5\u05ea \u2019"),
        ("a  b", " a b ", "a  b"),
    ],
)  # fmt: skip
def test_a_quote_is_found_however_it_is_written(text: str, quote: str, stands: str) -> None:
    ((start, stop),) = Passages(text).find(quote)
    assert text[start:stop] == stands


@pytest.mark.parametrize(
    "quote", ["led teams", "Led a team", "led the team", "", " ", "a team led"]
)
def test_what_was_changed_is_not_found(quote: str) -> None:
    assert Passages("She led a team of five.").find(quote) == []


def test_every_place_is_told() -> None:
    assert Passages("aXbXcXbX").find("Xb") == [(1, 3), (5, 7)]


@given(
    st.text(),
    st.text(alphabet="a \u00a0\u00ad\u2019e\u0301\ufb01\uff11\n\u1100\u1161", max_size=30),
    st.text(),
)
def test_what_stands_in_a_text_is_found_in_it(before: str, quote: str, after: str) -> None:
    text = f"{before}x{quote}x{after}"
    places = Passages(text).find(f"x{quote}x")
    assert places
    for start, stop in places:
        assert normalised(text[start:stop]).strip() == normalised(f"x{quote}x").strip()


def test_places_are_right_at_the_end_of_a_megabyte() -> None:
    parts = [
        f"Sie leitete Team {i}\u2014f\u00fcnf  Jahre. \u4e2d\u6587\uff11 " for i in range(30_000)
    ]
    text = "".join(parts)
    passages = Passages(text)
    for i in range(0, 30_000, 1_000):
        ((start, stop),) = passages.find(f"Team {i}-f\u00fcnf Jahre. \u4e2d\u65871")
        assert text[start:stop] == parts[i].removeprefix("Sie leitete ").strip()


def test_kinds_of_fields_are_told_to_the_model() -> None:
    assert "copied word for word" in question_for({"proof": "quotes"})
    assert field_schema("quotes") == {"type": "array", "items": {"type": "string"}}
    assert field_schema("date") == {"type": "string", "format": "date"}
    reading = '{"verdict":"yes","proof":["a","b"],"other":"c","one":"d"}'
    fields = {"proof": "quotes", "other": "str", "one": "quote"}
    assert quotes_of(reading, fields) == [("proof", "a"), ("proof", "b"), ("one", "d")]
    assert unicodedata.is_normalized("NFKC", normalised("\ufb01\u00a0\uff11"))


@pytest.mark.parametrize(
    "url", ["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)]
)
def test_a_yes_without_its_quotes_goes_to_review(request: pytest.FixtureRequest, url: str) -> None:
    address = request.getfixturevalue(url)
    check_ready(address)
    engine = open_engine(address)
    store = Store(engine)
    run = ingested(store, rows(4))
    judge = store.tiers.set_judge(run.id, 0, {"model": "small"})
    texts = waiting(store, run, 0, judge)
    said = [
        ("yes", 0.9, [texts[0].text[2:9], "not there"]),
        ("yes", 0.8, [texts[1].text]),
        ("no", 0.2, ["not there"]),
        ("yes", 0.7, []),
    ]
    answers = [
        Judgement(one.id, score, json.dumps({"verdict": word, "proof": quotes}), 1.0)
        for one, (word, score, quotes) in zip(texts, said, strict=True)
    ]
    for _ in range(2):  # a reply that comes again is kept once
        found = check_quotes(store, judge, {"proof": "quotes"}, answers)
    store.judgements.record(run.id, judge, found)
    assert [one.score for one in found] == [None, 0.8, 0.2, None]
    assert "does not hold what the reply quotes: 'not there'" in str(found[0].error)
    assert found[3].error == "the reply says yes and quotes nothing"
    assert store.quotes.counts(run.id) == (4, 3, 2, 2)
    store.verdicts.decide(run.id, 0)
    shown = store.results.explain(run.id, rows(4)[0].key).evidence
    assert [(one.start, one.stop) for one in shown] == [(2, len(texts[0].text[:9])), (None, None)]
    engine.dispose()


class Quoting(ModelServer):
    """Says that every third text is a match, and quotes it; of every ninth, words of its own."""

    def _choice(self, index, number, body, kind):
        choice = super()._choice(index, number, body, kind)
        content = json.loads(choice["message"]["content"])
        words = "a team of my own" if number % 9 == 0 else f"text  number {number}"
        content = {"verdict": content["verdict"], "proof": [words]}
        choice["message"]["content"] = json.dumps(content)
        return choice


def test_a_run_keeps_the_evidence_of_its_answers(project) -> None:
    with Quoting() as server:
        project.write(
            f"{{name: only, backend: http, base_url: '{server.url}', model: m, "
            "ask: {json: {proof: quotes}}, policy: {accept_above: 0.5}}",
            count=30,
        )
        code, summary, err = project.run()
    assert code == 0, err
    matches = {number for number in range(30) if is_match(number)}
    assert summary["accepted"] == len({one for one in matches if one % 9})
    assert summary["review"] == len({one for one in matches if one % 9 == 0})
    assert summary["quotes"] == {"quotes": 30, "texts": 30, "found": 26, "without": 4}
    database = ("--database", project.database)
    _, told, _ = project.tamis("explain", "try-1", "k000000", *database)
    assert "'a team of my own': not in the text" in told
    _, told, _ = project.tamis("explain", "try-1", "k000003", *database)
    assert "characters 6 to 19" in told
    query = "SELECT tier, SUM(CASE WHEN start IS NULL THEN 1 ELSE 0 END) AS missing FROM evidence GROUP BY tier"
    _, told, _ = project.tamis("sql", query, "--json", *database)
    assert json.loads(told) == [{"tier": "only", "missing": 4}]


def test_a_comma_is_no_evidence_and_a_quote_counts_once() -> None:
    assert Passages("Led a team, twice.").find(",") == []
    assert quotes_of('{"proof":["a","a"]}', {"proof": "quotes"}) == [("proof", "a")]


def test_the_screens_of_the_page_are_screens(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "evidence.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "screen.yaml").write_text(block)
        assert load_screen(tmp_path / "screen.yaml").tiers
