"""Pilots and plans: what a sample showed, and what a run was expected to take when it began."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("kind", sa.Text(), server_default="screen", nullable=False))
    op.create_table(
        "pilot",
        sa.Column("run_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("screen", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_pilot_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_pilot")),
    )
    op.create_index(op.f("ix_pilot_screen"), "pilot", ["screen"])
    op.create_table(
        "plan",
        sa.Column("run_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pilot_id", sa.Integer(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_plan_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_plan")),
    )


def downgrade() -> None:
    op.drop_table("plan")
    op.drop_table("pilot")
    op.drop_column("run", "kind")
