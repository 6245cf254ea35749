"""What a report says of a run: questions in SQL that a person can ask again, word by word.

Each is one SELECT with all that it needs in it, and gives few rows however many candidates there
are: counts and means by tier, by bin of scores, by reason.
"""

from typing import Any, NamedTuple

from sqlalchemy import Connection

from db.bulk import Noun
from db.models import LabelSource
from db.runs import Run

BINS = 40
"""Of a tier's scores, over [0, 1]."""
LABELLED_BINS = 10
DISPUTED = 20
CUT = 280
"""Characters of a disputed candidate's text."""
REASONS = 200
_FLOOR = {"sqlite": "CAST({} AS INTEGER)", "postgresql": "CAST(FLOOR({}) AS INTEGER)"}
_WORDS = """\
CASE verdict.outcome WHEN 'accept' THEN 'accepted' WHEN 'reject' THEN 'rejected'
    WHEN 'review' THEN 'review' WHEN 'failed' THEN 'failed' ELSE 'pending' END"""
_ANSWERS = """\
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN verdict ON verdict.run_id = run.id AND verdict.position >= run_tier.position
JOIN candidate ON candidate.id = verdict.candidate_id
JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id"""
_VOTES = """\
WITH told AS (
  SELECT text_id, SUM(CASE WHEN answer THEN 1 ELSE -1 END) AS votes
  FROM label
  WHERE rubric = {rubric} AND source = {source}{by} AND answer IS NOT NULL
  GROUP BY text_id
)"""
_LABELLED = """\
FROM told
JOIN candidate ON candidate.text_id = told.text_id
JOIN run ON run.key = {run}
JOIN verdict ON verdict.run_id = run.id AND verdict.candidate_id = candidate.id"""

ACCOUNT = """\
SELECT verdict, COUNT(*) AS candidates FROM result WHERE run = {run} GROUP BY verdict"""
FUNNEL = """\
SELECT tier, reached, judged, reused, promoted, accepted, rejected, review, failed, pending,
  prompt_tokens, cached_tokens, completion_tokens, seconds, usd
FROM funnel WHERE run = {run} ORDER BY position"""
SCORES = f"""\
SELECT run_tier.position, run_tier.name AS tier,
  CASE WHEN judgement.score < 1 THEN {{floor}} ELSE {BINS - 1} END AS bin,
  CASE WHEN verdict.position > run_tier.position THEN 'promoted' ELSE
    {_WORDS} END AS became,
  COUNT(*) AS candidates
{_ANSWERS}
WHERE run.key = {{run}} AND judgement.score IS NOT NULL
GROUP BY 1, 2, 3, 4 ORDER BY 1, 3, 4"""
# The texts of the few alone: a sort would drag all of them along.
DISPUTED_CANDIDATES = f"""\
SELECT key, verdict, tier, score, next_tier, next_score,
  (SELECT SUBSTR(text.body, 1, {CUT}) FROM text WHERE text.id = text_id) AS text
FROM (
  SELECT candidate.key AS key, candidate.text_id AS text_id, {_WORDS} AS verdict,
    one.name AS tier, here.score AS score, two.name AS next_tier, there.score AS next_score
  FROM run
  JOIN run_tier AS one ON one.run_id = run.id
  JOIN run_tier AS two ON two.run_id = run.id AND two.position = one.position + 1
  JOIN verdict ON verdict.run_id = run.id AND verdict.position >= two.position
  JOIN candidate ON candidate.id = verdict.candidate_id
  JOIN judgement AS here ON here.judge_id = one.judge_id AND here.text_id = candidate.text_id
  JOIN judgement AS there ON there.judge_id = two.judge_id AND there.text_id = candidate.text_id
  WHERE run.key = {{run}} AND here.score IS NOT NULL AND there.score IS NOT NULL
  ORDER BY ABS(here.score - there.score) DESC, candidate.key, one.position LIMIT {DISPUTED}
) AS disputed ORDER BY ABS(score - next_score) DESC, key, tier"""
REASONS_TOLD = f"""\
SELECT run_tier.name AS place, {_WORDS} AS verdict, verdict.why AS reason, COUNT(*) AS candidates
FROM run
JOIN verdict ON verdict.run_id = run.id
JOIN run_tier ON run_tier.run_id = run.id AND run_tier.position = verdict.position
WHERE run.key = {{run}} AND verdict.why IS NOT NULL
GROUP BY 1, 2, 3
UNION ALL
SELECT 'input', 'failed', bad_row.reason, COUNT(*)
FROM run JOIN bad_row ON bad_row.run_id = run.id
WHERE run.key = {{run}} GROUP BY 3
ORDER BY 4 DESC, 1, 3 LIMIT {REASONS}"""
RELIABILITY = f"""\
{_VOTES}
SELECT run_tier.position, run_tier.name AS tier,
  CASE WHEN judgement.score < 1 THEN {{floor_labelled}} ELSE {LABELLED_BINS - 1} END AS bin,
  COUNT(*) AS labels, AVG(judgement.score) AS mean_score,
  AVG(CASE WHEN told.votes > 0 THEN 1.0 ELSE 0.0 END) AS positive_share
{_LABELLED}
JOIN run_tier ON run_tier.run_id = run.id AND run_tier.position < {{tiers}}
JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
WHERE told.votes <> 0 AND judgement.score IS NOT NULL
GROUP BY 1, 2, 3 ORDER BY 1, 3"""
FOUND = f"""\
{_VOTES}
SELECT {_WORDS} AS verdict, COUNT(*) AS labels,
  COUNT(CASE WHEN told.votes > 0 THEN 1 END) AS positives
{_LABELLED}
WHERE told.votes <> 0
GROUP BY 1 ORDER BY 1"""
SAMPLES = """\
SELECT sample.attempt, sample.number, sample.position, run_tier.name AS tier, sample.at, sample.cpu,
  sample.memory, sample.gpu, sample.gpu_memory, sample.judged,
  sample.prompt_tokens + sample.completion_tokens AS tokens, sample.prompt_tokens,
  sample.cached_tokens
FROM run
JOIN sample ON sample.run_id = run.id
LEFT JOIN run_tier ON run_tier.run_id = run.id AND run_tier.position = sample.position
WHERE run.key = {run}
ORDER BY sample.attempt, sample.number, sample.position"""
STAGES = """\
SELECT run_tier.name AS tier, SUM(of.loading) AS loading, SUM(of.reading) AS reading,
  SUM(of.judging) AS judging, SUM(of.storing) AS storing, SUM(of.prompt - of.cached) AS evaluated,
  SUM(of.written) AS written, MAX(run_tier.prompt_rate) AS prompt_rate,
  MAX(run_tier.decode_rate) AS decode_rate
FROM (
  SELECT run_id, attempt, position, MAX(loading) AS loading, MAX(reading) AS reading,
    MAX(judging) AS judging, MAX(storing) AS storing, MAX(prompt_tokens) AS prompt,
    MAX(cached_tokens) AS cached, MAX(completion_tokens) AS written
  FROM sample GROUP BY run_id, attempt, position
) AS of
JOIN run ON run.id = of.run_id
JOIN run_tier ON run_tier.run_id = of.run_id AND run_tier.position = of.position
WHERE run.key = {run}
GROUP BY run_tier.position, run_tier.name ORDER BY run_tier.position"""
CERTIFICATE = """\
SELECT policy.certificate AS certificate
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN policy ON policy.id = run_tier.policy_id OR policy.run_id = run.id
WHERE run.key = {run} AND policy.certificate IS NOT NULL
ORDER BY policy.id DESC LIMIT 1"""
PLAN = """\
SELECT plan.body AS plan FROM run JOIN plan ON plan.run_id = run.id WHERE run.key = {run}"""
# By index and row by row: SQLite has no quick way to join two runs by key.
_EARLIER = """\
FROM run JOIN candidate ON candidate.screen = run.screen AND candidate.key = mine.key
    JOIN verdict ON verdict.run_id = run.id AND verdict.candidate_id = candidate.id"""
CHANGED = f"""\
SELECT was, is_now, text, COUNT(*) AS candidates
FROM (
  SELECT was, is_now, CASE WHEN was IS NULL THEN 'new'
    WHEN COALESCE(old_text, 0) <> COALESCE(text_id, 0) THEN 'changed' ELSE 'same' END AS text
  FROM (
    SELECT mine.text_id AS text_id, {_WORDS} AS is_now,
      (SELECT {_WORDS} {_EARLIER}
        WHERE run.key = {{before}}) AS was,
      (SELECT candidate.text_id {_EARLIER}
        WHERE run.key = {{before}}) AS old_text
    FROM run JOIN verdict ON verdict.run_id = run.id
    JOIN candidate AS mine ON mine.id = verdict.candidate_id
    WHERE run.key = {{run}}
  ) AS pairs
  UNION ALL
  SELECT {_WORDS}, NULL, 'gone'
  FROM run JOIN verdict ON verdict.run_id = run.id
  JOIN candidate AS mine ON mine.id = verdict.candidate_id
  WHERE run.key = {{before}}
    AND NOT EXISTS (SELECT 1 {_EARLIER}
      WHERE run.key = {{run}})
) AS changes
GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2"""


class Told(NamedTuple):
    """Whose labels a run is held against."""

    rubric: str
    """As `db.labels.rubric_digest` names it."""
    source: LabelSource
    reviewer: str | None
    """None for all people."""
    tiers: int
    """How many tiers, from the first, whose scores are held against them."""


class Answer(NamedTuple):
    """A question as it was asked, and what came of it."""

    sql: str
    rows: list[dict[str, Any]]


class Aggregates(Noun):
    """Counts over runs, for reports."""

    def sql(self, question: str, run: Run) -> str:
        """A question as it would be asked, for figures that are known already."""
        with self._reading() as connection:
            return _filled(connection, question, run, None, None)

    def ask(
        self, question: str, run: Run, *, told: Told | None = None, before: Run | None = None
    ) -> Answer:
        """The rows of one of the questions above.

        Args:
            question: the statement, with places for what belongs to the run.
            run: the run.
            told: for questions about labels.
            before: the earlier of two runs that are compared.
        """
        with self._reading() as connection:
            sql = _filled(connection, question, run, told, before)
            # As it stands: a percent sign in a key is none of a parameter.
            rows = connection.execution_options(no_parameters=True).exec_driver_sql(sql)
            return Answer(sql, [dict(row._mapping) for row in rows])


def _filled(
    connection: Connection, question: str, run: Run, told: Told | None, before: Run | None
) -> str:
    floor = _FLOOR[connection.dialect.name]
    places: dict[str, Any] = {
        "run": _literal(run.key),
        "floor": floor.format(f"judgement.score * {BINS}"),
        "floor_labelled": floor.format(f"judgement.score * {LABELLED_BINS}"),
    }
    if before is not None:
        places["before"] = _literal(before.key)
    if told is not None:
        by = "" if told.reviewer is None else f" AND reviewer = {_literal(told.reviewer)}"
        places |= {
            "rubric": _literal(told.rubric),
            "source": _literal(told.source),
            "by": by,
            "tiers": told.tiers,
        }
    return question.format(**places)


def _literal(text: str) -> str:
    """Text as SQL writes it: both databases take it as it is but for its quotes."""
    return "'" + text.replace("'", "''") + "'"
