"""What judgements cost, and batches: prices, reasoning tokens, requests answered by tomorrow."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# SQLite numbers rows only in a column declared INTEGER.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

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

VIEWS = {"funnel": FUNNEL, "judgement_detail": JUDGEMENT_DETAIL}


def upgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW {name}")
    op.create_table(
        "price",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("input", sa.Double(), nullable=False),
        sa.Column("cached_input", sa.Double(), nullable=False),
        sa.Column("output", sa.Double(), nullable=False),
        sa.Column("hour", sa.Double(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price")),
    )
    op.add_column(
        "policy", sa.Column("budget", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("run_tier", sa.Column("price_id", sa.Integer(), nullable=True))
    op.add_column("run_tier", sa.Column("affordable", sa.Integer(), nullable=True))
    op.add_column(
        "judgement",
        sa.Column("reasoning_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column("judgement", sa.Column("price_id", sa.Integer(), nullable=True))
    op.create_table(
        "batch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("price_id", sa.Integer(), nullable=True),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("key_fingerprint", sa.Text(), nullable=False),
        sa.Column("remote_id", sa.Text(), nullable=True),
        sa.Column("input_file", sa.Text(), nullable=True),
        sa.Column("output_file", sa.Text(), nullable=True),
        sa.Column("error_file", sa.Text(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("remote_state", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("unanswered", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_batch_run_id_run")),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], name=op.f("fk_batch_judge_id_judge")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
        sa.UniqueConstraint("mark", name=op.f("uq_batch_mark")),
    )
    op.create_index(op.f("ix_batch_run_id"), "batch", ["run_id"], unique=False)
    op.create_table(
        "batch_line",
        sa.Column("batch_id", sa.Integer(), nullable=False),
        sa.Column("text_id", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batch.id"], name=op.f("fk_batch_line_batch_id_batch")
        ),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name=op.f("fk_batch_line_text_id_text")),
        sa.PrimaryKeyConstraint("batch_id", "text_id", name=op.f("pk_batch_line")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_batch_line_text_id"), "batch_line", ["text_id"], unique=False)
    for name, body in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {body}")


def downgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW {name}")
    op.drop_index(op.f("ix_batch_line_text_id"), table_name="batch_line")
    op.drop_table("batch_line")
    op.drop_index(op.f("ix_batch_run_id"), table_name="batch")
    op.drop_table("batch")
    op.drop_column("judgement", "price_id")
    op.drop_column("judgement", "reasoning_tokens")
    op.drop_column("run_tier", "affordable")
    op.drop_column("run_tier", "price_id")
    op.drop_column("policy", "budget")
    op.drop_table("price")
    before = op.get_context().opts["script"].get_revision(down_revision).module.VIEWS
    for name in VIEWS:
        op.execute(f"CREATE VIEW {name} AS {before[name]}")
