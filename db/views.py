"""The views: what analysts query, the same on both databases. Described in `docs/sql.md`.

A migration keeps its own frozen copy; a test compares that copy with this file.
"""

# LEFT JOIN even where there is always a row, because databases leave out those that a query asks
# nothing of: counting verdicts then reads the verdicts alone.
RESULT = """\
SELECT
  run.key AS run,
  run.screen AS screen,
  candidate.key AS key,
  CASE verdict.outcome
    WHEN 'accept' THEN 'accepted'
    WHEN 'reject' THEN 'rejected'
    WHEN 'review' THEN 'review'
    WHEN 'failed' THEN 'failed'
    ELSE 'pending'
  END AS verdict,
  run_tier.name AS tier,
  judgement.score AS score,
  judgement.reading AS reading,
  verdict.why AS why,
  candidate_fields.fields AS fields,
  text.body AS text
FROM run
JOIN verdict ON verdict.run_id = run.id
LEFT JOIN candidate ON candidate.id = verdict.candidate_id
LEFT JOIN candidate_fields ON candidate_fields.candidate_id = verdict.candidate_id
LEFT JOIN run_tier ON run_tier.run_id = verdict.run_id AND run_tier.position = verdict.position
LEFT JOIN text ON text.id = candidate.text_id
LEFT JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id"""

# Two arms, one over candidates and one over judgements paid, so that a text that two candidates
# share counts twice in the first and once in the second. Both group by the run's key: a condition
# on `run` then reaches the tables, on either database, and other runs are not read.
FUNNEL = """\
SELECT
  run,
  position,
  tier,
  CAST(SUM(reached) AS BIGINT) AS reached,
  CAST(SUM(paid) AS BIGINT) AS judged,
  CAST(CASE WHEN SUM(answered) > SUM(paid) THEN SUM(answered) - SUM(paid) ELSE 0 END AS BIGINT)
    AS reused,
  CAST(SUM(promoted) AS BIGINT) AS promoted,
  CAST(SUM(accepted) AS BIGINT) AS accepted,
  CAST(SUM(rejected) AS BIGINT) AS rejected,
  CAST(SUM(review) AS BIGINT) AS review,
  CAST(SUM(failed) AS BIGINT) AS failed,
  CAST(SUM(pending) AS BIGINT) AS pending,
  CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens,
  CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens,
  CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens,
  MAX(seconds) AS seconds,
  MAX(state) AS state,
  CAST(SUM(reasoning_tokens) AS BIGINT) AS reasoning_tokens,
  CASE WHEN SUM(unpriced) = 0 THEN SUM(usd) + MAX(seconds) * MAX(usd_an_hour) / 3600 END AS usd
FROM (
  SELECT
    run.key AS run,
    run_tier.position AS position,
    run_tier.name AS tier,
    run_tier.seconds AS seconds,
    run_tier.state AS state,
    COUNT(verdict.candidate_id) AS reached,
    COUNT(judgement.text_id) AS answered,
    COUNT(CASE WHEN verdict.position > run_tier.position THEN 1 END) AS promoted,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'accept'
      THEN 1 END) AS accepted,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'reject'
      THEN 1 END) AS rejected,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'review'
      THEN 1 END) AS review,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome = 'failed'
      THEN 1 END) AS failed,
    COUNT(CASE WHEN verdict.position = run_tier.position AND verdict.outcome IS NULL
      THEN 1 END) AS pending,
    0 AS paid,
    0 AS prompt_tokens,
    0 AS cached_tokens,
    0 AS completion_tokens,
    0 AS reasoning_tokens,
    0 AS unpriced,
    0.0 AS usd,
    COALESCE(price.hour, 0.0) AS usd_an_hour
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  LEFT JOIN price ON price.id = run_tier.price_id
  LEFT JOIN verdict
    ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
  LEFT JOIN candidate ON candidate.id = verdict.candidate_id
  LEFT JOIN judgement
    ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
  GROUP BY run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state, price.hour
  UNION ALL
  SELECT
    run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state,
    0, 0, 0, 0, 0, 0, 0, 0,
    COUNT(*),
    SUM(judgement.prompt_tokens),
    SUM(judgement.cached_tokens),
    SUM(judgement.completion_tokens),
    SUM(judgement.reasoning_tokens),
    COUNT(*) - COUNT(price.id),
    SUM(((judgement.prompt_tokens - judgement.cached_tokens) * price.input
      + judgement.cached_tokens * price.cached_input
      + judgement.completion_tokens * price.output) / 1000000),
    0.0
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  JOIN judgement
    ON judgement.run_id = run_tier.run_id AND judgement.judge_id = run_tier.judge_id
  LEFT JOIN price ON price.id = judgement.price_id
  WHERE NOT EXISTS (
    SELECT 1 FROM run_tier AS earlier
    WHERE earlier.run_id = run_tier.run_id
      AND earlier.judge_id = run_tier.judge_id
      AND earlier.position < run_tier.position
  )
  GROUP BY run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state
) AS counts
GROUP BY run, position, tier"""

# Of candidates with the same text, the one ingested first is shown as the one that was paid for.
# CROSS JOIN makes SQLite begin at the few candidates of a text, not at all verdicts of the run.
JUDGEMENT_DETAIL = """\
SELECT
  run.key AS run,
  candidate.key AS key,
  run_tier.position AS position,
  run_tier.name AS tier,
  judgement.score AS score,
  judgement.reading AS reading,
  judgement.mass AS mass,
  CASE
    WHEN verdict.position > run_tier.position THEN 'promote'
    WHEN verdict.outcome IS NULL THEN 'pending'
    ELSE verdict.outcome
  END AS outcome,
  judgement.error AS error,
  judgement.note AS note,
  judgement.prompt_tokens AS prompt_tokens,
  judgement.cached_tokens AS cached_tokens,
  judgement.completion_tokens AS completion_tokens,
  judgement.seconds AS seconds,
  (judgement.run_id <> run.id
    OR EXISTS (
      SELECT 1 FROM candidate AS twin CROSS JOIN verdict AS twin_verdict
      WHERE twin.text_id = judgement.text_id
        AND twin.id < candidate.id
        AND twin_verdict.run_id = run.id
        AND twin_verdict.candidate_id = twin.id
        AND twin_verdict.position >= run_tier.position
    )
    OR EXISTS (
      SELECT 1 FROM run_tier AS earlier
      WHERE earlier.run_id = run.id
        AND earlier.judge_id = run_tier.judge_id
        AND earlier.position < run_tier.position
    )
  ) AS reused,
  judgement.judged_at AS judged_at,
  judge.description AS judge,
  judgement.reasoning_tokens AS reasoning_tokens,
  CASE WHEN price.hour = 0 THEN
    ((judgement.prompt_tokens - judgement.cached_tokens) * price.input
      + judgement.cached_tokens * price.cached_input
      + judgement.completion_tokens * price.output) / 1000000
  END AS usd
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN judge ON judge.id = run_tier.judge_id
JOIN verdict ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
JOIN candidate ON candidate.id = verdict.candidate_id
JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
LEFT JOIN price ON price.id = judgement.price_id"""

VIEWS = {"result": RESULT, "funnel": FUNNEL, "judgement_detail": JUDGEMENT_DETAIL}
