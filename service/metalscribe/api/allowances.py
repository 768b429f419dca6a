"""How much of the service a key may have: requests at one time, and audio a day.

Requests at one time are counted in this process; a day's audio in the database, for all services that share it. A key is read anew
with every request, so that a limit that was changed holds for the next one, and counts what is under way already.

What repeats another request by its ``Idempotency-Key`` costs nothing, and is never refused for what the other one has used. A
dialect that streams must therefore refuse the header with a stream, to which nobody can be attached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, time, timedelta
from typing import Final

from starlette.requests import Request

from metalscribe.api.ledger import Ledger
from metalscribe.api.lifetime import hold
from metalscribe.api.work import Desk
from metalscribe.errors import ConcurrencyLimited, DailyAudioSpent, MetalscribeError
from metalscribe.render.times import utc_text
from metalscribe.store.identity import ApiKey, Clock, utc_now
from metalscribe.store.usage import day_of

_COME_BACK_SECONDS: Final = 5.0


class Places:
    """The work that is under way for each key."""

    def __init__(self) -> None:
        self._under_way: dict[str, Counter[Hashable]] = {}

    @contextmanager
    def taken(self, key: ApiKey, work: Hashable) -> Iterator[None]:
        """A place among the key's work; one for all who are at the same ``work``.

        Raises:
            ConcurrencyLimited: there is none.
        """
        under_way = self._under_way.setdefault(key.id, Counter())
        if key.concurrency is not None and work not in under_way and len(under_way) >= key.concurrency:
            raise ConcurrencyLimited(
                f"{len(under_way)} of this key's requests are under way, and {key.concurrency} may be at one time; send this one "
                f"again when one of them has ended, or in {_COME_BACK_SECONDS:g} seconds",
                _COME_BACK_SECONDS,
            )
        under_way[work] += 1
        try:
            yield
        finally:
            under_way[work] -= 1
            if not under_way[work]:
                del under_way[work]
            if not under_way:
                self._under_way.pop(key.id, None)


class Allowances:
    """Lets work begin, or says when to come back.

    Args:
        desk: knows what is repeated.
        ledger: knows what was used today.
        clock: the time, for tests; the ledger's.
    """

    def __init__(self, desk: Desk, ledger: Ledger, *, clock: Clock = utc_now) -> None:
        self._desk = desk
        self._ledger = ledger
        self._clock = clock
        self._places = Places()

    async def admit(self, request: Request, key: ApiKey) -> None:
        """Let a transcription begin whose caller waits for it; called before its upload is read.

        Its place is given back when all of the request is over, its stream included.

        Raises:
            ConcurrencyLimited, DailyAudioSpent: not now.
        """
        await self.require_audio(request, key)
        repeatable = request.headers.get("Idempotency-Key")
        try:
            hold(request, self._places.taken(key, repeatable or object()))
        except ConcurrencyLimited as refusal:
            await self._refuse(request, key, refusal)

    async def require_audio(self, request: Request, key: ApiKey) -> None:
        """Let audio in, as long as the key has any left today; what is under way when it has not is done all the same.

        Raises:
            DailyAudioSpent: it has none.
        """
        if key.daily_audio_seconds is None:
            return
        used = await self._ledger.audio_today(key.id)
        if used < key.daily_audio_seconds:
            return
        now = self._clock()
        tomorrow = _midnight_after(now)
        refusal = DailyAudioSpent(
            f"this API key has had {used:.0f} seconds of audio transcribed today, and may have {key.daily_audio_seconds:g} a day; "
            f"the next day begins at {utc_text(tomorrow)}",
            (tomorrow - now).total_seconds(),
        )
        await self._refuse(request, key, refusal)

    async def _refuse(self, request: Request, key: ApiKey, refusal: MetalscribeError) -> None:
        """Refuse, unless the request repeats another, or may turn out to once it is there."""
        if await self._desk.knows(request, key):
            return
        if not self._desk.abandoned(key):
            raise refusal
        self._desk.put_off(request, refusal)


def _midnight_after(moment: datetime) -> datetime:
    """The end of the moment's day."""
    return datetime.combine(day_of(moment) + timedelta(days=1), time(), tzinfo=UTC)
