"""Alembic's entry point. Runs on the connection, and inside the transaction, that :mod:`metalscribe.store.migrate` opened."""

from __future__ import annotations

from alembic import context

from metalscribe.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
