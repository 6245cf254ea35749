"""The view judgement_detail names the screen, so that one candidate is found by the index on keys."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

DETAIL = """\
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
  END AS usd{screen}
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN judge ON judge.id = run_tier.judge_id
JOIN verdict ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
JOIN candidate ON candidate.id = verdict.candidate_id
JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
LEFT JOIN price ON price.id = judgement.price_id"""


def upgrade() -> None:
    _replace(DETAIL.format(screen=",\n  run.screen AS screen"))
    op.drop_column("run", "prefect_flow_run")


def downgrade() -> None:
    op.add_column("run", sa.Column("prefect_flow_run", sa.Text(), nullable=True))
    _replace(DETAIL.format(screen=""))


def _replace(detail: str) -> None:
    op.execute("DROP VIEW judgement_detail")
    op.execute(f"CREATE VIEW judgement_detail AS {detail}")
