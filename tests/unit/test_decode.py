from __future__ import annotations

import asyncio
import errno
import itertools
import mmap
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from common import Eventually, MakeWav
from metalscribe.errors import (
    EngineFailed,
    MetalscribeError,
    NoAudioTrack,
    ShuttingDown,
    UndecodableMedia,
    UnsupportedMedia,
    UploadTooLarge,
)
from metalscribe.media.decode import EVERYTHING, DecoderPool
from metalscribe.media.messages import Chunk, Decoded, Ended, Limits, Opened, Piece
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE
from metalscribe.media.recording import Recording
from metalscribe.media.session import DecodeSession

STAGES = Path(__file__).parent / "decoder_stages"
MISBEHAVING = (
    *("Account", "BusyLoop", "Descend", "Escape", "FalseAlarm", "Garbage", "Gifts", "Hoarder", "Killed", "Raising"),
    *("Impossible", "Sizes", "Standstill"),
)
CAPACITY = 4 * BLOCK
MEDIA_ERRORS = (UnsupportedMedia, UndecodableMedia, NoAudioTrack, UploadTooLarge)
STALL = 3.0
"""Seconds: room for a busy machine, and short enough to be waited for."""

StartPool = Callable[..., Awaitable[DecoderPool]]


def stage(name: str) -> str:
    return f"misbehaving:{name}"


@pytest.fixture
async def start_pool(monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> AsyncIterator[StartPool]:
    """Start pools whose sandbox knows the misbehaving stages, too."""
    monkeypatch.setenv("PYTHONPATH", str(STAGES))
    pools = []

    async def start(**options: object) -> DecoderPool:
        pool = DecoderPool(stages=(EVERYTHING, *map(stage, MISBEHAVING)), **options)  # type: ignore[arg-type]
        pools.append(pool)
        await pool.start()
        # While it starts, the sandbox has children that are no decoders (ldconfig, looking for libseccomp).
        await eventually(lambda: pool.confinement is not None, 30)
        return pool

    yield start
    for pool in pools:
        await pool.close()


@pytest.fixture
def noise(make_wav: MakeWav) -> Callable[[float], Path]:
    """A recording of so many seconds of noise, no two stretches alike."""

    def make(seconds: float) -> Path:
        samples = np.random.default_rng(int(seconds * 100)).uniform(-0.5, 0.5, int(seconds * SAMPLE_RATE))
        return make_wav(samples, name=f"noise-{seconds}.wav")

    return make


def sandbox_of(pool: DecoderPool) -> psutil.Process:
    assert pool._process is not None
    return psutil.Process(pool._process.pid)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def decoders_of(pool: DecoderPool) -> list[psutil.Process]:
    return [child for child in sandbox_of(pool).children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


class Ring:
    """The reader's view of a session's shared memory."""

    def __init__(self, session: DecodeSession) -> None:
        self._samples = np.frombuffer(
            mmap.mmap(session.ring, session.capacity * 4, prot=mmap.PROT_READ), dtype=np.float32
        )

    def read(self, chunk: Chunk) -> NDArray[np.float32]:
        at = (chunk.start + np.arange(chunk.length)) % self._samples.size
        return self._samples[at].copy()


async def chunks_of(session: DecodeSession) -> AsyncGenerator[tuple[Chunk, NDArray[np.float32]]]:
    """Every chunk with its samples; released once the consumer asks for the next one."""
    ring = Ring(session)
    async for message in session:
        if isinstance(message, Chunk):
            yield message, ring.read(message)
            await session.release(message.start + message.length)


async def read_all(pool: DecoderPool, path: Path, *, capacity: int = CAPACITY, track: int = 0) -> NDArray[np.float32]:
    async with pool.open(path, capacity=capacity, track=track) as session:
        return np.concatenate([samples async for _, samples in chunks_of(session)])


def read_directly(path: Path, *, track: int = 0) -> NDArray[np.float32]:
    with path.open("rb") as file:
        return np.concatenate(list(Recording(file, track=track).blocks()))


async def run_stage(pool: DecoderPool, path: Path, name: str, **options: object) -> list[NDArray[np.float32]]:
    async with pool.open(path, stage=stage(name), options=options, capacity=CAPACITY) as session:
        return [samples async for _, samples in chunks_of(session)]


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.speech
@pytest.mark.parametrize("capacity", [BLOCK, 2 * BLOCK + 1234, 100 * BLOCK])
async def test_the_ring_carries_exactly_the_recording(start_pool: StartPool, data: Path, capacity: int) -> None:
    path = data / "english/jfk/jfk.flac"
    pool = await start_pool()
    np.testing.assert_array_equal(await read_all(pool, path, capacity=capacity), read_directly(path))


async def test_messages_tell_the_header_the_places_and_the_end(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool()
    async with pool.open(noise(20.0), capacity=40 * BLOCK) as session:
        messages = [message async for message in session]
    assert messages[0] == Opened("wav", "pcm_s16le", 20.0, 1)
    assert messages[-1] == Ended(20 * SAMPLE_RATE, 0)
    chunks = [message for message in messages if isinstance(message, Chunk)]
    ends = [0, *itertools.accumulate(chunk.length for chunk in chunks)]
    assert [chunk.start for chunk in chunks] == ends[:-1]
    assert ends[-1] == 20 * SAMPLE_RATE
    assert all(chunk.pieces == [Piece(chunk.start, chunk.length)] for chunk in chunks)
    assert any(isinstance(message, Decoded) for message in messages)


async def test_a_decoder_that_is_ahead_waits_and_its_memory_stays_bounded(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(stall_seconds=STALL)
    path = noise(30.0)
    async with pool.open(path, capacity=CAPACITY) as session:
        messages = aiter(session)
        received: list[Chunk] = []
        while len(received) < 4:
            message = await anext(messages)
            if isinstance(message, Chunk):
                received.append(message)
        # Nothing is released: nothing comes, the wait is no stall, and the file's 30 seconds take 4 seconds of memory.
        waiting = asyncio.ensure_future(anext(messages))
        await eventually(lambda: session._waiting_for_room)
        done, _ = await asyncio.wait({waiting}, timeout=1.5 * STALL)
        assert not done
        assert os.fstat(session.ring).st_size == CAPACITY * 4
        assert os.fstat(session.ring).st_blocks * 512 <= CAPACITY * 4
        ring = Ring(session)
        samples = [ring.read(chunk) for chunk in received]
        await session.release(received[-1].start + received[-1].length)
        message = await waiting
        while not isinstance(message, Ended):
            if isinstance(message, Chunk):
                samples.append(ring.read(message))
                await session.release(message.start + message.length)
            message = await anext(messages)
    np.testing.assert_array_equal(np.concatenate(samples), read_directly(path))


async def test_room_that_is_not_enough_is_no_reason_to_give_the_decoder_up(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    # A small chunk is released, the next one needs more room than that, and the reader takes its time over the rest.
    pool = await start_pool(stall_seconds=STALL)
    sizes = [1000, CAPACITY - 1000, 5000, 5000]
    async with pool.open(noise(1.0), stage=stage("Sizes"), options={"sizes": sizes}, capacity=CAPACITY) as session:
        messages = aiter(session)
        while not isinstance(await anext(messages), Chunk):
            pass
        while not isinstance(await anext(messages), Chunk):
            pass
        waiting = asyncio.ensure_future(anext(messages))
        await eventually(lambda: session._waiting_for_room)
        await session.release(1000)
        done, _ = await asyncio.wait({waiting}, timeout=1.5 * STALL)
        assert not done, "given up though the ring was full"
        await session.release(CAPACITY)
        message = await waiting
        lengths = []
        while not isinstance(message, Ended):
            if isinstance(message, Chunk):
                lengths.append(message.length)
            message = await anext(messages)
        assert lengths == [5000, 5000]


async def test_nobody_can_change_the_size_of_the_ring(start_pool: StartPool, noise: Callable[[float], Path]) -> None:
    pool = await start_pool()
    async with pool.open(noise(0.5), capacity=CAPACITY) as session:
        for size in (0, CAPACITY * 8):
            with pytest.raises(PermissionError):
                os.ftruncate(session.ring, size)


@pytest.mark.speech
async def test_the_audio_track_can_be_chosen(start_pool: StartPool, data: Path) -> None:
    pool = await start_pool()
    path = data / "hostile/generated/two_audio_tracks_speech_is_second.mkv"
    first, second = await read_all(pool, path), await read_all(pool, path, track=1)
    np.testing.assert_array_equal(first, read_directly(path))
    np.testing.assert_array_equal(second, read_directly(path, track=1))
    assert not np.array_equal(first, second)
    with pytest.raises(NoAudioTrack, match="audio_track=2"):
        await read_all(pool, path, track=2)


async def test_thirty_recordings_at_once(start_pool: StartPool, noise: Callable[[float], Path]) -> None:
    pool = await start_pool()
    paths = [noise(1.0 + number / 10) for number in range(30)]
    before = open_descriptors()
    async with asyncio.TaskGroup() as group:
        reading = [group.create_task(read_all(pool, path, capacity=2 * BLOCK)) for path in paths]
    for path, task in zip(paths, reading, strict=True):
        np.testing.assert_array_equal(task.result(), read_directly(path))
    assert open_descriptors() == before


async def test_a_long_recording_with_a_full_ring_keeps_no_short_one_out(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    async with pool.open(noise(30.0), capacity=CAPACITY) as session:
        messages = aiter(session)
        waiting = asyncio.ensure_future(anext(messages))
        while not session._waiting_for_room:
            done, _ = await asyncio.wait({waiting}, timeout=0.05)
            if done:
                waiting = asyncio.ensure_future(anext(messages))
        async with asyncio.timeout(10):
            assert (await read_all(pool, noise(2.0))).size == 2 * SAMPLE_RATE
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_no_more_decoders_run_than_may(start_pool: StartPool, noise: Callable[[float], Path]) -> None:
    pool = await start_pool(parallel=1)
    path = noise(0.5)
    async with pool.open(path, stage=stage("Standstill"), capacity=CAPACITY):
        second = asyncio.create_task(read_all(pool, path))
        done, _ = await asyncio.wait({second}, timeout=0.2)
        assert not done
        assert len(decoders_of(pool)) == 1
    assert (await second).size == SAMPLE_RATE // 2


# --- what is wrong with a recording -----------------------------------------------------------------------------------


@pytest.mark.speech
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("hls_file_read.mp4", UnsupportedMedia),
        ("random_bytes.mp3", UnsupportedMedia),
        ("video_no_audio.mp4", NoAudioTrack),
        ("jfk_cenc_encrypted.mp4", UndecodableMedia),
        ("jfk_truncated_no_moov.m4a", UndecodableMedia),
    ],
)
async def test_media_errors_come_through(
    start_pool: StartPool, data: Path, name: str, error: type[MetalscribeError]
) -> None:
    pool = await start_pool()
    with pytest.raises(error):
        await read_all(pool, data / "hostile/generated" / name)


@pytest.mark.speech
async def test_the_sandbox_outlives_the_whole_corpus(start_pool: StartPool, data: Path) -> None:
    pool = await start_pool(limits=Limits(audio_seconds=700.0))
    sandbox = sandbox_of(pool)
    for path in sorted((data / "hostile").rglob("*")):
        if path.is_file():
            try:
                samples = await read_all(pool, path, capacity=16 * BLOCK)
            except MEDIA_ERRORS:
                continue
            assert np.isfinite(samples).all()
            assert np.abs(samples).max() <= 1
    assert sandbox_of(pool) == sandbox


async def test_a_recording_longer_than_allowed_is_refused_while_it_is_decoded(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool(limits=Limits(audio_seconds=3.0))
    with pytest.raises(UploadTooLarge, match="longer than"):
        await read_all(pool, noise(3.5))
    assert (await read_all(pool, noise(2.9))).size == int(2.9 * SAMPLE_RATE)


async def test_a_symbolic_link_is_not_followed(
    start_pool: StartPool, noise: Callable[[float], Path], tmp_path: Path, eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    link = tmp_path / "link.wav"
    link.symlink_to(noise(0.5))
    with pytest.raises(UndecodableMedia, match=os.strerror(errno.ELOOP).lower()):
        await read_all(pool, link)
    with pytest.raises(UndecodableMedia, match="no such file"):
        await read_all(pool, tmp_path / "nothing.wav")
    assert (await read_all(pool, noise(0.5))).size == SAMPLE_RATE // 2
    await eventually(lambda: not pool._decoders)  # what never started is not remembered either


# --- decoders that misbehave ------------------------------------------------------------------------------------------


async def test_leaving_early_kills_the_decoder(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool()
    async with pool.open(noise(30.0), capacity=CAPACITY) as session:
        assert isinstance(await anext(aiter(session)), Opened)
        (decoder,) = decoders_of(pool)
    await eventually(lambda: not decoder.is_running())
    await eventually(lambda: not pool._decoders)


async def test_cancelling_kills_the_decoder(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    before = open_descriptors()
    reading = asyncio.create_task(run_stage(pool, noise(1.0), "Standstill"))
    await eventually(lambda: decoders_of(pool))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await eventually(lambda: not decoders_of(pool))
    assert (await read_all(pool, noise(0.5))).size == SAMPLE_RATE // 2
    assert open_descriptors() == before


async def test_cancelling_at_the_moment_of_the_start_leaves_nothing_behind(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    path = noise(1.0)
    await read_all(pool, path)
    before = open_descriptors()
    reading = asyncio.create_task(run_stage(pool, path, "Standstill"))
    while not any(decoder.started.done() for decoder in pool._decoders.values()):
        await asyncio.sleep(0)
    reading.cancel()  # before the task that waits for the start has seen it
    with pytest.raises(asyncio.CancelledError):
        await reading
    await eventually(lambda: not decoders_of(pool))
    assert open_descriptors() == before


async def test_closing_the_pool_ends_all_its_processes(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool()
    reading = asyncio.create_task(run_stage(pool, noise(1.0), "Standstill"))
    await eventually(lambda: decoders_of(pool))
    processes = [sandbox_of(pool), *decoders_of(pool)]
    await pool.close()
    with pytest.raises((EngineFailed, ShuttingDown)):
        await reading
    await eventually(lambda: not any(process.is_running() for process in processes))


async def test_who_waits_while_the_pool_is_closed_starts_nothing_anew(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    path = noise(0.5)
    first = asyncio.create_task(run_stage(pool, path, "Standstill"))
    await eventually(lambda: decoders_of(pool))
    second = asyncio.create_task(read_all(pool, path))
    await asyncio.sleep(0)
    await pool.close()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(result, EngineFailed | ShuttingDown) for result in results), results
    assert pool._process is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS])
async def test_a_decoder_that_crashes_is_the_recordings_fault_alone(
    start_pool: StartPool, noise: Callable[[float], Path], number: signal.Signals
) -> None:
    pool = await start_pool(parallel=1)
    with pytest.raises(UndecodableMedia, match=number.name):
        await run_stage(pool, noise(1.0), "Killed", signal=int(number))
    assert (await read_all(pool, noise(0.5))).size == SAMPLE_RATE // 2


async def test_a_decoder_killed_from_outside_midway(start_pool: StartPool, noise: Callable[[float], Path]) -> None:
    pool = await start_pool()
    with pytest.raises(UndecodableMedia, match="SIGKILL"):
        async with pool.open(noise(30.0), capacity=CAPACITY) as session:
            async for _ in chunks_of(session):
                for decoder in decoders_of(pool):
                    decoder.kill()


async def test_a_busy_loop_ends_at_the_limit_of_processor_time(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool(limits=Limits(cpu_seconds=1))
    with pytest.raises(UndecodableMedia, match="processor time"):
        await run_stage(pool, noise(1.0), "BusyLoop")
    assert not decoders_of(pool)


async def test_a_decoder_without_progress_is_stopped(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(stall_seconds=STALL)
    with pytest.raises(UndecodableMedia, match="no progress"):
        await run_stage(pool, noise(1.0), "Standstill")
    await eventually(lambda: not decoders_of(pool))


async def test_a_decoder_that_pretends_to_wait_for_room_is_stopped(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool(stall_seconds=STALL)
    async with asyncio.timeout(5 * STALL):
        with pytest.raises(UndecodableMedia):
            await run_stage(pool, noise(1.0), "FalseAlarm")


async def test_memory_beyond_the_limit_is_an_error_and_no_crash(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool()
    with pytest.raises(UndecodableMedia, match="memory"):
        await run_stage(pool, noise(1.0), "Hoarder")


async def test_a_defect_of_the_stage_is_not_the_recordings_fault(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool()
    with pytest.raises(EngineFailed, match="decoder failed"):
        await run_stage(pool, noise(1.0), "Raising")


async def test_garbage_from_a_decoder_is_the_end_of_it(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool()
    with pytest.raises(UndecodableMedia):
        await run_stage(pool, noise(1.0), "Garbage")
    await eventually(lambda: not decoders_of(pool))


async def test_descriptors_from_a_decoder_are_not_kept(start_pool: StartPool, noise: Callable[[float], Path]) -> None:
    pool = await start_pool()
    path = noise(1.0)
    await read_all(pool, path)
    before = open_descriptors()
    with suppress(UndecodableMedia):  # refusing such a decoder is as good as closing what it sends
        await run_stage(pool, path, "Gifts")
    assert open_descriptors() <= before


async def test_a_decoder_can_open_nothing_and_knows_no_secret(
    start_pool: StartPool, noise: Callable[[float], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALSCRIBE_API_KEY", "secret")
    monkeypatch.setenv("A_SECRET_OF_SOMEBODY_ELSE", "secret")
    target = tmp_path / "target"
    target.write_text("untouched")
    before = target.stat()
    pool = await start_pool()
    (results,) = await run_stage(pool, noise(1.0), "Escape", target=str(target))
    assert results.size == 19
    assert not results.any(), results
    assert target.stat() == before
    environment = sandbox_of(pool).environ()
    assert "secret" not in environment.values()


@pytest.mark.parametrize(
    "chunk",
    [
        (0, 0, []),
        (0, -5, [(0, -5)]),
        (0, 10 * CAPACITY, [(0, 10 * CAPACITY)]),
        (512, 512, [(0, 512)]),
        (0, 512, []),
        (0, 512, [(0, 511)]),
        (0, 512, [(100, 256), (0, 256)]),
        (0, 512, [(-1, 512)]),
    ],
)
async def test_a_chunk_that_cannot_be_is_not_believed(
    start_pool: StartPool, noise: Callable[[float], Path], chunk: tuple[int, int, list[tuple[int, int]]]
) -> None:
    pool = await start_pool()
    async with asyncio.timeout(10):
        with pytest.raises(UndecodableMedia):
            await run_stage(pool, noise(1.0), "Impossible", chunk=chunk)


async def test_a_decoder_leaves_no_descendants(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool()
    ((forked, child),) = await run_stage(pool, noise(1.0), "Descend")
    try:
        assert not forked, "a decoder could fork a process that outlives it"
    finally:
        if child:
            os.kill(int(child), signal.SIGKILL)


async def test_a_decoder_holds_its_channel_file_and_ring_and_is_limited(
    start_pool: StartPool, noise: Callable[[float], Path]
) -> None:
    pool = await start_pool(limits=Limits(cpu_seconds=77))
    (account,) = await run_stage(pool, noise(1.0), "Account")
    assert account.tolist()[:5] == [4, 0, 0, 0, 77]  # the ring twice: a mapping keeps a descriptor of its own
    assert account[5] > 0


# --- the sandbox itself -----------------------------------------------------------------------------------------------


async def test_when_the_sandbox_dies_the_next_request_works(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    reading = asyncio.create_task(run_stage(pool, noise(1.0), "Standstill"))
    await eventually(lambda: decoders_of(pool))
    (decoder,) = decoders_of(pool)
    sandbox = sandbox_of(pool)
    sandbox.kill()
    with pytest.raises(EngineFailed, match="sandbox"):
        await reading
    await eventually(lambda: not decoder.is_running())
    assert (await read_all(pool, noise(0.5))).size == SAMPLE_RATE // 2
    assert sandbox_of(pool) != sandbox


async def test_when_the_sandbox_is_dead_before_the_request(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    sandbox = sandbox_of(pool)
    sandbox.kill()
    assert pool._listener is not None
    await asyncio.wait({pool._listener})
    assert (await read_all(pool, noise(0.5))).size == SAMPLE_RATE // 2


async def test_a_service_out_of_descriptors_recovers(
    start_pool: StartPool, noise: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await start_pool(parallel=1)

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await read_all(pool, noise(0.5))
    async with asyncio.timeout(5):
        assert (await read_all(pool, noise(0.5))).size == SAMPLE_RATE // 2


async def test_opens_concurrently_start_one_sandbox(
    monkeypatch: pytest.MonkeyPatch, noise: Callable[[float], Path]
) -> None:
    pool = DecoderPool()
    me = psutil.Process()
    before = set(me.children())
    try:
        await asyncio.gather(*(read_all(pool, noise(0.5)) for _ in range(4)))
        assert len(set(me.children()) - before) == 1
    finally:
        await pool.close()


@asynccontextmanager
async def paused(process: psutil.Process) -> AsyncIterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


async def test_a_request_cancelled_while_the_sandbox_is_slow_leaves_no_decoder(
    start_pool: StartPool, noise: Callable[[float], Path], eventually: Eventually
) -> None:
    pool = await start_pool(parallel=1)
    path = noise(1.0)
    await read_all(pool, path)
    before = open_descriptors()
    async with paused(sandbox_of(pool)):
        reading = asyncio.create_task(run_stage(pool, path, "Standstill"))
        await eventually(lambda: pool._decoders)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert (await read_all(pool, path)).size == SAMPLE_RATE
    await eventually(lambda: not decoders_of(pool) and not pool._decoders)
    assert open_descriptors() == before
