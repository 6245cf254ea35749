"""Classifiers that were trained, and the texts whose labels each was trained on."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "classifier",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("screen", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_classifier")),
        sa.UniqueConstraint(
            "screen", "tier", "version", name=op.f("uq_classifier_screen_tier_version")
        ),
    )
    op.create_table(
        "classifier_text",
        sa.Column("classifier_id", sa.Integer(), nullable=False),
        sa.Column("text_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("held_out", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["classifier_id"],
            ["classifier.id"],
            name=op.f("fk_classifier_text_classifier_id_classifier"),
        ),
        sa.ForeignKeyConstraint(
            ["text_id"], ["text.id"], name=op.f("fk_classifier_text_text_id_text")
        ),
        sa.PrimaryKeyConstraint("classifier_id", "text_id", name=op.f("pk_classifier_text")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("classifier_text")
    op.drop_table("classifier")
