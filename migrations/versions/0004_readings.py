"""Who was calibrated, and which reading of the input a candidate or a bad row came with."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# SQLite numbers rows only in a column declared INTEGER.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COLUMNS = (("verdict", "since"), ("bad_row", "ingest"))


def upgrade() -> None:
    op.create_table(
        "calibrated",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("candidate_id", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_calibrated_candidate_id_candidate")
        ),
        sa.PrimaryKeyConstraint("digest", "candidate_id", name=op.f("pk_calibrated")),
        sqlite_with_rowid=False,
    )
    for table, column in COLUMNS:
        op.add_column(
            table, sa.Column(column, sa.Integer(), server_default=sa.text("0"), nullable=False)
        )


def downgrade() -> None:
    for table, column in COLUMNS:
        op.drop_column(table, column)
    op.drop_table("calibrated")
