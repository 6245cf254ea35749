"""What a run used of its machine while it worked, every ten seconds at first and seldom later."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sample",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cpu", sa.Double(), nullable=True),
        sa.Column("memory", sa.BigInteger(), nullable=True),
        sa.Column("gpu", sa.Double(), nullable=True),
        sa.Column("gpu_memory", sa.BigInteger(), nullable=True),
        sa.Column("judged", sa.BigInteger(), nullable=False),
        sa.Column("expected", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("loading", sa.Double(), nullable=False),
        sa.Column("reading", sa.Double(), nullable=False),
        sa.Column("judging", sa.Double(), nullable=False),
        sa.Column("storing", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_sample_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "attempt", "number", "position", name=op.f("pk_sample")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("sample")
