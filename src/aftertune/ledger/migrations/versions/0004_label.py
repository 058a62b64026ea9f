"""Revision 0004: the table ``label``, with the tags and the note that a user gives an entry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "label",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True, nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_label"),
        sa.UniqueConstraint("entry", name="uq_label_entry"),
        sqlite_autoincrement=True)
