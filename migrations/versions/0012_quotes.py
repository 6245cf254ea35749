"""Where the quotes of a reply stand in the text that was judged."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

EVIDENCE = """\
SELECT
  run.key AS run,
  run.screen AS screen,
  candidate.key AS key,
  run_tier.position AS position,
  run_tier.name AS tier,
  quote.field AS field,
  quote.number AS number,
  quote.quote AS quote,
  quote.occurrence AS occurrence,
  quote.start AS start,
  quote.stop AS stop
FROM run
JOIN run_tier ON run_tier.run_id = run.id
JOIN verdict ON verdict.run_id = run_tier.run_id AND verdict.position >= run_tier.position
JOIN candidate ON candidate.id = verdict.candidate_id
JOIN quote ON quote.judge_id = run_tier.judge_id AND quote.text_id = candidate.text_id"""


def upgrade() -> None:
    op.create_table(
        "quote",
        sa.Column("judge_id", sa.Integer(), nullable=False),
        sa.Column("text_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("occurrence", sa.Integer(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("quote", sa.Text(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=True),
        sa.Column("stop", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], name=op.f("fk_quote_judge_id_judge")),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name=op.f("fk_quote_text_id_text")),
        sa.PrimaryKeyConstraint(
            "judge_id", "text_id", "number", "occurrence", name=op.f("pk_quote")
        ),
    )
    op.execute(f"CREATE VIEW evidence AS {EVIDENCE}")


def downgrade() -> None:
    op.execute("DROP VIEW evidence")
    op.drop_table("quote")
