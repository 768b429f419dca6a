"""Bring a database to this version's tables, or refuse it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from metalscribe.errors import ConfigurationError
from metalscribe.store.models import Base

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """Run the missing migrations inside the connection's transaction.

    Not reentrant: the ``op`` that migrations call is one per process, so callers take turns.

    Raises:
        ConfigurationError: a newer version, or another program, made the tables.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    if current - known:
        found, newest = ", ".join(sorted(current)), script.get_current_head()
        raise ConfigurationError(
            f"The database is at schema {found}, and this version knows none newer than {newest}: a newer metalscribe wrote it. "
            "Install that version again, or restore the backup made before the upgrade."
        )
    if not current and (foreign := set(inspect(connection).get_table_names()) & set(Base.metadata.tables)):
        raise ConfigurationError(
            f"The database already holds tables that metalscribe did not make ({', '.join(sorted(foreign))}). "
            "Give it a database of its own with METALSCRIBE_DATABASE_URL."
        )
    if current != set(script.get_heads()):
        command.upgrade(config, "head")
