"""Labels, audits, and policies as versions of a run's tier, with their certificates."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# SQLite numbers rows only in a column declared INTEGER.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "label",
        sa.Column("rubric", sa.Text(), nullable=False),
        sa.Column("text_id", BIG, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("answer", sa.Boolean(), nullable=True),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["text_id"], ["text.id"], name=op.f("fk_label_text_id_text")),
        sa.PrimaryKeyConstraint("rubric", "text_id", "source", "reviewer", name=op.f("pk_label")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("candidate_id", BIG, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("drawn", sa.Boolean(), nullable=False),
        sa.Column("found", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_audit_candidate_id_candidate")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_audit_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "candidate_id", name=op.f("pk_audit")),
        sqlite_with_rowid=False,
    )
    # No foreign keys in the new columns, because SQLite could never drop those again.
    op.add_column("policy", sa.Column("run_id", sa.Integer(), nullable=True))
    op.add_column("policy", sa.Column("position", sa.Integer(), nullable=True))
    op.add_column("policy", sa.Column("follows", sa.Text(), nullable=True))
    op.add_column("policy", sa.Column("certificate", sa.Text(), nullable=True))
    for column in ("run_id", "position"):
        op.execute(
            f"UPDATE policy SET {column} = (SELECT MIN(run_tier.{column}) FROM run_tier "  # noqa: S608
            "WHERE run_tier.policy_id = policy.id)"
        )
    op.create_index(op.f("ix_policy_run_id"), "policy", ["run_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_policy_run_id"), table_name="policy")
    for column in ("certificate", "follows", "position", "run_id"):
        op.drop_column("policy", column)
    op.drop_table("audit")
    op.drop_table("label")
