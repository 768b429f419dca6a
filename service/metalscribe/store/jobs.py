"""Jobs in the database: accepted, claimed by one process, written down as they advance, ended, forgotten.

Every change of a running job is made on condition that the process still owns it, so that a process that was taken for dead,
or whose job was cancelled by another, finds out and stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from metalscribe.errors import NotFound, RateLimited, StorageFull
from metalscribe.store.database import Database, affected
from metalscribe.store.deliveries import enqueue
from metalscribe.store.identity import Clock, utc_now
from metalscribe.store.job import Advance, Job, JobStatus, NewJob, Quota, Webhook
from metalscribe.store.models import JobCheckpointRow, JobRow, JobSegmentRow
from metalscribe.store.turns import Turns
from metalscribe.store.usage import Usage, day_of, record
from metalscribe.transcript import Segment, Word

_OPEN: Final = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
_FINAL: Final = tuple(status.value for status in JobStatus if status.final)
_FORGOTTEN_TOGETHER: Final = 100


class JobStore:
    """The jobs of all processes that share a database."""

    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock
        self._turns = Turns()

    # --- for callers ---

    async def accept(self, new: NewJob, quota: Quota) -> Job:
        """Write a job down; when this returns it survives anything.

        Raises:
            RateLimited: the key has as many jobs, or as many bytes of them, as it may.
            StorageFull: the budget is spent, even after the oldest results were forgotten.
        """
        async with self._database.session() as session:
            await _require_quota(session, new, quota)
            row = JobRow(
                id=new.id,
                key_id=new.key_id,
                status=JobStatus.QUEUED.value,
                owner=None,
                weight=new.weight,
                name=new.name,
                options=dict(new.options),
                webhook_url=new.webhook_url,
                audio_bytes=new.audio_bytes,
                result_bytes=0,
                progress=0,
                created_at=self._clock(),
            )
            session.add(row)
            await session.flush()
            return _job(row)

    async def get(self, job_id: str, key_id: str | None = None) -> Job:
        """A job.

        Args:
            job_id: which.
            key_id: whose; None for anybody's.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        async with self._database.session(read_only=True) as session:
            return _job(await _found(session, job_id, key_id))

    async def several(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of these jobs that there are."""
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)))
            return [_job(row) for row in rows]

    async def segments(self, job: Job, first: int = 0) -> tuple[Segment, ...]:
        """The segments that are final, from index ``first`` on."""
        async with self._database.session(read_only=True) as session:
            return await _segments(session, job.number, first)

    async def page(
        self, key_id: str | None, *, limit: int, before: int | None = None, status: JobStatus | None = None
    ) -> list[Job]:
        """Jobs, newest first; ``before`` is the number of the last one of the page before."""
        wanted: Select[JobRow] = select(JobRow).order_by(JobRow.number.desc()).limit(limit)
        if key_id is not None:
            wanted = wanted.where(JobRow.key_id == key_id)
        if before is not None:
            wanted = wanted.where(JobRow.number < before)
        if status is not None:
            wanted = wanted.where(JobRow.status == status.value)
        async with self._database.session(read_only=True) as session:
            return [_job(row) for row in await session.scalars(wanted)]

    async def cancel(self, job_id: str, key_id: str | None = None) -> Job:
        """Cancel a job that has not ended; one that has is deleted with all that is known of it. Returns it as it was.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        async with self._database.session() as session:
            row = await _found(session, job_id, key_id, lock=True)
            was = _job(row)
            if was.status.final:
                await session.delete(row)
                return was
            now = self._clock()
            row.status, row.owner, row.completed_at = JobStatus.CANCELLED.value, None, now
            await session.execute(delete(JobCheckpointRow).where(JobCheckpointRow.job == row.number))
            if row.started_at is not None:
                used = Usage(jobs=1, audio_seconds=await _told(session, row.number))
                await record(session, day_of(now), row.key_id, used)
            return was

    # --- for who runs them ---

    async def claim(self, owner: str) -> tuple[Job, dict[int, bytes]] | None:
        """Take the job that is next: the oldest of the key whose turn it is.

        Returns:
            the job and the checkpoints of its earlier runs, or None where nothing waits.
        """
        async with self._database.session() as session:
            row = await self._next(session)
            if row is None:
                return None
            row.status, row.owner = JobStatus.RUNNING.value, owner
            row.started_at = row.started_at or self._clock()
            kept = await session.scalars(select(JobCheckpointRow).where(JobCheckpointRow.job == row.number))
            return _job(row), {checkpoint.chunk: checkpoint.data for checkpoint in kept}

    async def _next(self, session: AsyncSession) -> JobRow | None:
        queued = JobRow.status == JobStatus.QUEUED.value
        oldest = select(func.min(JobRow.number)).where(queued).group_by(JobRow.key_id)
        waiting = [
            (self._turns.pass_of(key_id), number)
            for number, key_id in await session.execute(
                select(JobRow.number, JobRow.key_id).where(JobRow.number.in_(oldest))
            )
        ]
        # Another process may be taking one at this moment: then the next key's, at last any.
        choices = [select(JobRow).where(JobRow.number == number, queued) for _, number in sorted(waiting)]
        for choice in (*choices, select(JobRow).where(queued).order_by(JobRow.number).limit(1)):
            row = await session.scalar(choice.with_for_update(skip_locked=True))
            if row is not None:
                self._turns.taken(row.key_id, row.weight)
                return row
        return None

    async def advance(self, job: Job, owner: str, advance: Advance) -> bool:
        """Write down what has come of a job; False where it is not ``owner``'s any more and nothing was written."""
        async with self._database.session() as session:
            known: dict[str, Any] = {
                "language": advance.language,
                "language_probability": advance.language_probability,
                "duration": advance.duration,
            }
            changed = {name: value for name, value in known.items() if value is not None}
            if not await _changed(session, job, owner, {"progress": advance.progress, **changed}):
                return False
            kept = JobCheckpointRow.chunk.in_(advance.checkpoints)
            await session.execute(delete(JobCheckpointRow).where(JobCheckpointRow.job == job.number, kept))
            session.add_all(
                JobCheckpointRow(job=job.number, chunk=chunk, data=data) for chunk, data in advance.checkpoints.items()
            )
            if advance.segments:
                # A run that goes on from checkpoints tells again what an earlier one has told.
                told = JobSegmentRow.index.between(advance.segments[0].index, advance.segments[-1].index)
                await session.execute(delete(JobSegmentRow).where(JobSegmentRow.job == job.number, told))
            session.add_all(_segment_row(job, segment) for segment in advance.segments)
            return True

    async def end(
        self,
        job: Job,
        owner: str,
        ended: Job,
        segments: int,
        webhook: Webhook | None,
        engine_seconds: float = 0.0,
    ) -> bool:
        """Write down a job's end; False where it is not ``owner``'s any more.

        With it its webhook is due and its audio counted, once each, however often the job was begun.

        Args:
            job: as it was claimed.
            owner: the process that has run it.
            ended: as it shall be.
            segments: how many there are of it.
            webhook: who is told, and what.
            engine_seconds: that the run took which ended it.
        """
        kept = ("model", "language", "language_probability", "duration", "progress", "text", "error_code", "error")
        values = {name: getattr(ended, name) for name in kept}
        async with self._database.session() as session:
            size = await session.scalar(
                select(func.coalesce(func.sum(func.length(JobSegmentRow.text)), 0)).where(
                    JobSegmentRow.job == job.number
                )
            )
            values["result_bytes"] = int(size or 0) + len(ended.text or "")
            values |= {"status": ended.status.value, "completed_at": ended.completed_at, "owner": None}
            if not await _changed(session, job, owner, values):
                return False
            await session.execute(delete(JobCheckpointRow).where(JobCheckpointRow.job == job.number))
            beyond = JobSegmentRow.index >= segments  # told by an earlier run, of another version
            await session.execute(delete(JobSegmentRow).where(JobSegmentRow.job == job.number, beyond))
            if webhook is not None:
                enqueue(session, job.key_id, job.id, webhook, self._clock())
            done = ended.status is JobStatus.DONE
            used = Usage(
                jobs=1,
                failed=int(not done),
                audio_seconds=(ended.duration or 0.0) if done else await _told(session, job.number),
                engine_seconds=engine_seconds,
            )
            await record(session, day_of(self._clock()), job.key_id, used)
            return True

    async def give_back(self, owner: str, job: Job | None = None) -> int:
        """Queue a process's running jobs again, or one of them; what is written down of them stays. Returns how many."""
        mine: list[ColumnElement[bool]] = [JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value]
        if job is not None:
            mine.append(JobRow.number == job.number)
        async with self._database.session() as session:
            return affected(
                await session.execute(update(JobRow).where(*mine).values(status=JobStatus.QUEUED.value, owner=None))
            )

    async def owners(self) -> set[str]:
        """The processes that run jobs, dead ones among them."""
        async with self._database.session(read_only=True) as session:
            found = await session.scalars(
                select(JobRow.owner).where(JobRow.status == JobStatus.RUNNING.value).distinct()
            )
            return {owner for owner in found if owner is not None}

    async def with_recordings(self) -> set[str]:
        """The ids of the jobs that have not ended."""
        async with self._database.session(read_only=True) as session:
            return set(await session.scalars(select(JobRow.id).where(JobRow.status.in_(_OPEN))))

    async def counts(self) -> dict[JobStatus, int]:
        """How many jobs there are, by status."""
        async with self._database.session(read_only=True) as session:
            found = await session.execute(select(JobRow.status, func.count()).group_by(JobRow.status))
            return {JobStatus(status): count for status, count in found}

    async def forget(self, older_than: timedelta) -> int:
        """Delete the jobs that ended longer ago than that; returns how many."""
        ended = (JobRow.status.in_(_FINAL), JobRow.completed_at < self._clock() - older_than)
        async with self._database.session() as session:
            return affected(await session.execute(delete(JobRow).where(*ended)))


async def _require_quota(session: AsyncSession, new: NewJob, quota: Quota) -> None:
    mine = (JobRow.key_id == new.key_id, JobRow.status.in_(_OPEN))
    count, size = (
        await session.execute(select(func.count(), func.coalesce(func.sum(JobRow.audio_bytes), 0)).where(*mine))
    ).one()
    if quota.queued_per_key and count >= quota.queued_per_key:
        raise RateLimited(
            f"{count} of this key's jobs wait or run, the most allowed; cancel some, or wait for one to end", 60.0
        )
    if quota.bytes_per_key and size + new.audio_bytes > quota.bytes_per_key:
        raise RateLimited(
            f"this key's waiting recordings have {size / 2**20:.0f} MiB, and with this one would have more than the "
            f"{quota.bytes_per_key / 2**20:g} MiB allowed; wait for some to end",
            60.0,
        )
    if quota.bytes:
        await _make_room(session, new.audio_bytes, quota.bytes)


async def _make_room(session: AsyncSession, wanted: int, budget: int) -> None:
    """Forget the results that ended first until the recording fits."""
    while True:
        waiting = await session.scalar(
            select(func.coalesce(func.sum(JobRow.audio_bytes), 0)).where(JobRow.status.in_(_OPEN))
        )
        results = await session.scalar(select(func.coalesce(func.sum(JobRow.result_bytes), 0)))
        if int(waiting or 0) + int(results or 0) + wanted <= budget:
            return
        oldest = list(
            await session.scalars(
                select(JobRow.number)
                .where(JobRow.status.in_(_FINAL))
                .order_by(JobRow.completed_at, JobRow.number)
                .limit(_FORGOTTEN_TOGETHER)
            )
        )
        if not oldest or int(waiting or 0) + wanted > budget:
            raise StorageFull(
                f"the jobs' disk budget of {budget / 2**20:g} MiB is spent; wait for jobs to end, or raise METALSCRIBE_JOBS_DISK_MB"
            )
        await session.execute(delete(JobRow).where(JobRow.number.in_(oldest)))


async def _found(session: AsyncSession, job_id: str, key_id: str | None, *, lock: bool = False) -> JobRow:
    wanted = select(JobRow).where(JobRow.id == job_id)
    row = await session.scalar(wanted.with_for_update() if lock else wanted)
    if row is None or (key_id is not None and row.key_id != key_id):
        raise NotFound(f"there is no job {job_id}, or it is another key's")
    return row


async def _changed(session: AsyncSession, job: Job, owner: str, values: Mapping[str, Any]) -> bool:
    """Change a running job's row if it is ``owner``'s still."""
    changed = await session.execute(
        update(JobRow)
        .where(JobRow.number == job.number, JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value)
        .values(**values)
    )
    return affected(changed) == 1


async def _told(session: AsyncSession, number: int) -> float:
    """Up to which second of its recording a job has told its words."""
    return float(await session.scalar(select(func.max(JobSegmentRow.end)).where(JobSegmentRow.job == number)) or 0.0)


async def _segments(session: AsyncSession, number: int, first: int) -> tuple[Segment, ...]:
    rows = await session.scalars(
        select(JobSegmentRow)
        .where(JobSegmentRow.job == number, JobSegmentRow.index >= first)
        .order_by(JobSegmentRow.index)
    )
    return tuple(
        Segment(
            index=row.index,
            start=row.start,
            end=row.end,
            text=row.text,
            words=tuple(Word(*word) for word in row.words),
            avg_logprob=row.avg_logprob,
            no_speech_prob=row.no_speech_prob,
            compression_ratio=row.compression_ratio,
            speaker=row.speaker,
        )
        for row in rows
    )


def _segment_row(job: Job, segment: Segment) -> JobSegmentRow:
    return JobSegmentRow(
        job=job.number,
        index=segment.index,
        start=segment.start,
        end=segment.end,
        text=segment.text,
        words=[[word.start, word.end, word.text, word.probability] for word in segment.words],
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
        compression_ratio=segment.compression_ratio,
        speaker=segment.speaker,
    )


def _job(row: JobRow) -> Job:
    return Job(
        number=row.number,
        id=row.id,
        key_id=row.key_id,
        status=JobStatus(row.status),
        owner=row.owner,
        weight=row.weight,
        name=row.name,
        options=row.options,
        webhook_url=row.webhook_url,
        audio_bytes=row.audio_bytes,
        model=row.model,
        language=row.language,
        language_probability=row.language_probability,
        duration=row.duration,
        progress=row.progress,
        text=row.text,
        error_code=row.error_code,
        error=row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
    )
