"""The spine: runs, texts, candidates, judges, policies, judgements, verdicts, and the views."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite numbers rows only in a column declared INTEGER.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Keys are ordered by byte on both databases.
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

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
  MAX(state) AS state
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
    0 AS completion_tokens
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  LEFT JOIN verdict
    ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
  LEFT JOIN candidate ON candidate.id = verdict.candidate_id
  LEFT JOIN judgement
    ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id
  GROUP BY run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state
  UNION ALL
  SELECT
    run.key, run_tier.position, run_tier.name, run_tier.seconds, run_tier.state,
    0, 0, 0, 0, 0, 0, 0, 0,
    COUNT(*),
    SUM(judgement.prompt_tokens),
    SUM(judgement.cached_tokens),
    SUM(judgement.completion_tokens)
  FROM run
  JOIN run_tier ON run_tier.run_id = run.id
  JOIN judgement
    ON judgement.run_id = run_tier.run_id AND judgement.judge_id = run_tier.judge_id
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
  judge.description AS judge
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN judge ON judge.id = run_tier.judge_id
JOIN verdict ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
JOIN candidate ON candidate.id = verdict.candidate_id
JOIN judgement
  ON judgement.judge_id = run_tier.judge_id AND judgement.text_id = candidate.text_id"""

VIEWS = {"result": RESULT, "funnel": FUNNEL, "judgement_detail": JUDGEMENT_DETAIL}


def upgrade() -> None:
    op.create_table(
        "judge",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge")),
        sa.UniqueConstraint("digest", name=op.f("uq_judge_digest")),
    )
    op.create_table(
        "policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("reject_below", sa.Double(), nullable=True),
        sa.Column("accept_above", sa.Double(), nullable=True),
        sa.Column("top_count", sa.Integer(), nullable=True),
        sa.Column("top_share", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("author", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("screen", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("ingests", sa.Integer(), nullable=False),
        sa.Column("rows_read", sa.Integer(), nullable=False),
        sa.Column("rows_duplicate", sa.Integer(), nullable=False),
        sa.Column("prefect_flow_run", sa.Text(), nullable=True),
        sa.Column("lock_owner", sa.Text(), nullable=True),
        sa.Column("lock_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("key", name=op.f("uq_run_key")),
    )
    op.create_index(op.f("ix_run_screen"), "run", ["screen"], unique=False)
    op.create_table(
        "text",
        sa.Column("id", BIG, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_text")),
        sa.UniqueConstraint("digest", name=op.f("uq_text_digest")),
    )
    op.create_table(
        "bad_row",
        sa.Column("id", BIG, nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_bad_row_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bad_row")),
    )
    op.create_index(op.f("ix_bad_row_run_id"), "bad_row", ["run_id"], unique=False)
    op.create_table(
        "candidate",
        sa.Column("id", BIG, nullable=False),
        sa.Column("screen", sa.Text(), nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("text_id", BIG, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(text_id IS NULL) <> (problem IS NULL)", name=op.f("ck_candidate_text_or_problem")
        ),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name=op.f("fk_candidate_text_id_text")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidate")),
        sa.UniqueConstraint("screen", "key", "digest", name=op.f("uq_candidate_screen_key_digest")),
    )
    op.create_index(op.f("ix_candidate_text_id"), "candidate", ["text_id"], unique=False)
    op.create_table(
        "judgement",
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("text_id", BIG, nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("reading", sa.Text(), nullable=True),
        sa.Column("mass", sa.Double(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name=op.f("ck_judgement_score_is_probability")),
        sa.ForeignKeyConstraint(
            ["judge_id"], ["judge.id"], name=op.f("fk_judgement_judge_id_judge")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_judgement_run_id_run")),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name=op.f("fk_judgement_text_id_text")),
        sa.PrimaryKeyConstraint("judge_id", "text_id", name=op.f("pk_judgement")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_judgement_run_id_judge_id"), "judgement", ["run_id", "judge_id"], unique=False
    )
    op.create_table(
        "run_tier",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("judge_id", sa.Integer(), nullable=True),
        sa.Column("policy_id", sa.Integer(), nullable=True),
        sa.Column("last", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("load_seconds", sa.Double(), nullable=True),
        sa.Column("prompt_rate", sa.Double(), nullable=True),
        sa.Column("decode_rate", sa.Double(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["judge_id"], ["judge.id"], name=op.f("fk_run_tier_judge_id_judge")
        ),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["policy.id"], name=op.f("fk_run_tier_policy_id_policy")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_tier_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("pk_run_tier")),
    )
    op.create_table(
        "candidate_fields",
        sa.Column("candidate_id", BIG, autoincrement=False, nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"],
            ["candidate.id"],
            name=op.f("fk_candidate_fields_candidate_id_candidate"),
        ),
        sa.PrimaryKeyConstraint("candidate_id", name=op.f("pk_candidate_fields")),
    )
    op.create_table(
        "verdict",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("candidate_id", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("ingest", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_verdict_candidate_id_candidate")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_verdict_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "candidate_id", name=op.f("pk_verdict")),
        sqlite_with_rowid=False,
    )

    for name, body in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {body}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.drop_table("verdict")
    op.drop_table("candidate_fields")
    op.drop_table("run_tier")
    op.drop_index(op.f("ix_judgement_run_id_judge_id"), table_name="judgement")
    op.drop_table("judgement")
    op.drop_index(op.f("ix_candidate_text_id"), table_name="candidate")
    op.drop_table("candidate")
    op.drop_index(op.f("ix_bad_row_run_id"), table_name="bad_row")
    op.drop_table("bad_row")
    op.drop_table("text")
    op.drop_index(op.f("ix_run_screen"), table_name="run")
    op.drop_table("run")
    op.drop_table("policy")
    op.drop_table("judge")
