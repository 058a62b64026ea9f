"""Revision 0005: an evaluation may have a lease for each of several processes, with the batches that they compute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table again, because its key changes; the leases stay."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT evaluation, pid, host, boot, started, heartbeat FROM lease")).mappings()
    kept = [dict(row) for row in rows]
    op.drop_table("lease")
    table = op.create_table(
        "lease",
        sa.Column("evaluation", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("started", sa.Text(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.Column("start", sa.Integer()),
        sa.Column("stop", sa.Integer()),
        sa.PrimaryKeyConstraint("evaluation", "number", name="pk_lease"),
        sa.ForeignKeyConstraint(["evaluation"], ["evaluation.seq"], name="fk_lease_evaluation", ondelete="CASCADE"))
    if kept:
        op.bulk_insert(table, [{**row, "number": 0, "shared": False} for row in kept])
