"""Limits of API keys, and what each has used on each day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("api_keys", sa.Column("concurrency", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("daily_audio_seconds", sa.Double(), nullable=True))
    op.create_table(
        "usage",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("audio_seconds", sa.Double(), nullable=False),
        sa.Column("engine_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("day", "key_id", name="pk_usage"),
    )


def downgrade() -> None:
    """Drop the table and the columns with everything in them."""
    op.drop_table("usage")
    op.drop_column("api_keys", "daily_audio_seconds")
    op.drop_column("api_keys", "concurrency")
