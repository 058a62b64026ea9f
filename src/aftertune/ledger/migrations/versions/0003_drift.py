"""Revision 0003: the table ``drift``, with the measurements of how far a fine-tune moved a model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "drift",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("tuned", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_drift"),
        sa.UniqueConstraint("id", name="uq_drift_id"),
        sqlite_autoincrement=True)
    op.create_index("ix_drift_base", "drift", ["base"])
    op.create_index("ix_drift_tuned", "drift", ["tuned"])
