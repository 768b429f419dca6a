"""Commands that work on the service's database, whether the service runs or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from metalscribe.settings import Settings, load_settings

if TYPE_CHECKING:
    from metalscribe.store.database import Database

_Result = TypeVar("_Result")


def with_database(work: Callable[[Database], Awaitable[_Result]]) -> _Result:
    """Do ``work`` on the database that the settings name, opened for it and closed afterwards."""
    # The database is slow to import, and `metalscribe --help` does not need it.
    from metalscribe.store.database import Database  # noqa: PLC0415

    async def run(settings: Settings) -> _Result:
        database = Database(settings.sqlalchemy_url)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run(load_settings()))
