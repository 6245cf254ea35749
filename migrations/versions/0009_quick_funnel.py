"""The view funnel looks up the answers of those alone that may lack one, and knows the newest."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COUNTS = """\
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
  CASE WHEN SUM(unpriced) = 0 THEN SUM(usd) + MAX(seconds) * MAX(usd_an_hour) / 3600 END AS usd{newest_of_all}
FROM (
  SELECT
    run.key AS run,
    run_tier.position AS position,
    run_tier.name AS tier,
    run_tier.seconds AS seconds,
    run_tier.state AS state,
    COUNT(verdict.candidate_id) AS reached,
    {answered} AS answered,
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
    COALESCE(price.hour, 0.0) AS usd_an_hour{no_newest}
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  LEFT JOIN price ON price.id = run_tier.price_id
{verdicts}
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
    0.0{newest}
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
# Who was accepted, rejected or promoted by the tier has its answer; but an audit moves candidates
# past tiers that never saw them, so that in an audited run everybody is looked up.
QUICK = COUNTS.format(
    newest_of_all=",\n  MAX(newest) AS newest",
    no_newest=",\n    NULL AS newest",
    newest=",\n    MAX(judgement.judged_at)",
    answered="""\
COUNT(CASE WHEN candidate.id IS NULL THEN verdict.candidate_id ELSE judgement.text_id END)""",
    verdicts="""\
  LEFT JOIN (SELECT DISTINCT audit.run_id FROM audit) AS audited ON audited.run_id = run.id
  LEFT JOIN verdict
    ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
  LEFT JOIN candidate ON candidate.id = CASE
    WHEN audited.run_id IS NULL AND verdict.position > run_tier.position THEN NULL
    WHEN audited.run_id IS NULL AND verdict.outcome IN ('accept', 'reject') THEN NULL
    ELSE verdict.candidate_id
  END
  LEFT JOIN judgement
    ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id""",
)
SLOW = COUNTS.format(
    newest_of_all="",
    no_newest="",
    newest="",
    answered="COUNT(judgement.text_id)",
    verdicts="""\
  LEFT JOIN verdict
    ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
  LEFT JOIN candidate ON candidate.id = verdict.candidate_id
  LEFT JOIN judgement
    ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id""",
)


def upgrade() -> None:
    _replace(QUICK)


def downgrade() -> None:
    _replace(SLOW)


def _replace(funnel: str) -> None:
    op.execute("DROP VIEW funnel")
    op.execute(f"CREATE VIEW funnel AS {funnel}")
