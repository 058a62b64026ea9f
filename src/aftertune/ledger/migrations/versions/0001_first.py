"""Revision 0001, the first tables: the point from which later revisions start.

It changes nothing: a new ledger gets its tables from `aftertune.ledger.schema`, at the newest revision.
"""

from __future__ import annotations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing to do: no ledger is older than this."""
