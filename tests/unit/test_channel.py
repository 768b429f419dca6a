from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from metalscribe.channel import MESSAGE_BYTES, Channel, ChannelClosed


class Small(msgspec.Struct, frozen=True, tag="small"):
    number: int


class Large(msgspec.Struct, frozen=True, tag="large"):
    data: bytes


Message = Small | Large


@pytest.fixture
def ends() -> Iterator[tuple[Channel[Message], Channel[Message]]]:
    """The service's end (not blocking) and the other one (blocking)."""
    ours, theirs = Channel.pair()
    service, child = Channel[Message](ours, Message), Channel[Message](theirs, Message)
    yield service, child
    service.close()
    child.close()


@pytest.fixture
def raw() -> Iterator[tuple[Channel[Message], socket.socket]]:
    """The service's end, and the other one as a plain socket that can send anything."""
    ours, theirs = Channel.pair()
    service = Channel[Message](ours, Message)
    yield service, theirs
    service.close()
    theirs.close()


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def test_messages_keep_their_boundaries_and_their_order(ends: tuple[Channel[Message], Channel[Message]]) -> None:
    service, child = ends
    sent: list[Message] = [Small(1), Large(b"x" * 5000), Small(2), Large(b""), Small(3)]
    for message in sent:
        child.send(message)
    assert [(await service.areceive())[0] for _ in sent] == sent


async def test_the_largest_message_passes_whole(ends: tuple[Channel[Message], Channel[Message]]) -> None:
    service, child = ends
    overhead = len(msgspec.msgpack.encode(Large(b"x" * 100_000))) - 100_000
    message = Large(os.urandom(MESSAGE_BYTES - overhead))
    await service.asend(message)
    assert child.receive() == (message, [])


async def test_a_message_that_is_too_large_is_refused_before_it_is_sent(
    ends: tuple[Channel[Message], Channel[Message]],
) -> None:
    service, child = ends
    with pytest.raises(ValueError, match="Large"):
        await service.asend(Large(b"x" * MESSAGE_BYTES))
    with pytest.raises(ValueError, match="Large"):
        child.send(Large(b"x" * MESSAGE_BYTES))
    await service.asend(Small(4))
    assert child.receive()[0] == Small(4)


async def test_descriptors_arrive_with_their_message(
    ends: tuple[Channel[Message], Channel[Message]], tmp_path: Path
) -> None:
    service, child = ends
    (tmp_path / "a").write_text("first")
    (tmp_path / "b").write_text("second")
    files = [os.open(tmp_path / name, os.O_RDONLY) for name in ("a", "b")]
    await service.asend(Small(1), files)
    await service.asend(Small(2))
    for file in files:
        os.close(file)
    message, received = child.receive()
    assert message == Small(1)
    assert [os.read(file, 100) for file in received] == [b"first", b"second"]
    assert not any(os.get_inheritable(file) for file in received)
    for file in received:
        os.close(file)
    assert child.receive() == (Small(2), [])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",
        b"not a message",
        msgspec.msgpack.encode({"type": "unknown"}),
        msgspec.msgpack.encode({"type": "small", "number": "x"}),
    ],
)
async def test_garbage_is_a_decode_error_and_the_channel_lives_on(
    raw: tuple[Channel[Message], socket.socket], garbage: bytes
) -> None:
    service, theirs = raw
    theirs.send(garbage)
    with pytest.raises(msgspec.DecodeError):
        await service.areceive()
    theirs.send(msgspec.msgpack.encode(Small(1)))
    assert (await service.areceive())[0] == Small(1)


@pytest.mark.parametrize("receive", ["receive", "receive_waiting"])
def test_garbage_is_a_decode_error_at_the_blocking_end(
    raw: tuple[Channel[Message], socket.socket], receive: str
) -> None:
    service, theirs = raw
    theirs.send(b"not a message")
    with pytest.raises(msgspec.DecodeError):
        getattr(service, receive)()


async def test_descriptors_sent_with_garbage_do_not_stay_open(raw: tuple[Channel[Message], socket.socket]) -> None:
    service, theirs = raw
    before = open_descriptors()
    for _ in range(3):
        socket.send_fds(theirs, [b"\xc1"], [0, 0])
        with pytest.raises(msgspec.DecodeError):
            await service.areceive()
    assert open_descriptors() == before


async def test_more_descriptors_than_a_message_may_carry_are_refused_and_closed(
    raw: tuple[Channel[Message], socket.socket],
) -> None:
    service, theirs = raw
    before = open_descriptors()
    socket.send_fds(theirs, [msgspec.msgpack.encode(Small(1))], [0] * 9)
    with pytest.raises(msgspec.DecodeError, match="cut short"):
        await service.areceive()
    assert open_descriptors() == before


async def test_a_datagram_longer_than_any_message_is_a_decode_error(
    raw: tuple[Channel[Message], socket.socket],
) -> None:
    service, theirs = raw
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_BYTES)
    if theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * MESSAGE_BYTES:
        pytest.skip("net.core.wmem_max does not let this test send so much")
    theirs.send(msgspec.msgpack.encode(Small(1)) + b"\0" * MESSAGE_BYTES)
    with pytest.raises(msgspec.DecodeError, match="cut short"):
        await service.areceive()


async def test_the_end_of_the_other_side_is_channel_closed(ends: tuple[Channel[Message], Channel[Message]]) -> None:
    service, child = ends
    child.send(Small(1))
    child.close()
    assert (await service.areceive())[0] == Small(1)
    with pytest.raises(ChannelClosed):
        await service.areceive()
    with pytest.raises(ChannelClosed):
        await service.asend(Small(2))


async def test_what_was_sent_before_the_hang_up_arrives_though_the_other_side_left_messages_unread(
    ends: tuple[Channel[Message], Channel[Message]],
) -> None:
    service, child = ends
    child.send(Small(1))
    child.send(Small(2))
    await service.asend(Small(3))
    child.close()  # the kernel answers the next read with "connection reset" instead of what is waiting
    assert [(await service.areceive())[0], (await service.areceive())[0]] == [Small(1), Small(2)]
    with pytest.raises(ChannelClosed):
        await service.areceive()


def test_the_blocking_end_learns_of_the_hang_up(ends: tuple[Channel[Message], Channel[Message]]) -> None:
    service, child = ends
    service.close()
    with pytest.raises(ChannelClosed):
        child.receive()
    with pytest.raises(ChannelClosed):
        child.receive_waiting()
    with pytest.raises(ChannelClosed):
        child.send(Small(1))


async def test_a_receiver_that_waits_is_woken_by_the_hang_up(ends: tuple[Channel[Message], Channel[Message]]) -> None:
    service, child = ends
    waiting = asyncio.create_task(service.areceive())
    await asyncio.sleep(0)
    assert not waiting.done()
    child.close()
    async with asyncio.timeout(5):
        with pytest.raises(ChannelClosed):
            await waiting


async def test_receive_waiting_takes_what_is_there_and_never_blocks(
    ends: tuple[Channel[Message], Channel[Message]],
) -> None:
    service, child = ends
    assert child.receive_waiting() is None
    await service.asend(Small(1))
    await service.asend(Small(2))
    assert [child.receive_waiting(), child.receive_waiting(), child.receive_waiting()] == [Small(1), Small(2), None]


async def test_sending_waits_for_a_reader_that_is_behind_without_blocking_the_loop(
    ends: tuple[Channel[Message], Channel[Message]],
) -> None:
    service, child = ends
    count = 60
    senders = [asyncio.create_task(service.asend(Large(bytes([number]) * 50_000))) for number in range(count)]
    for _ in range(50):
        await asyncio.sleep(0)
    unsent = sum(not sender.done() for sender in senders)
    assert unsent > 0, "the socket took everything at once: nothing was held back"

    received: list[Message] = []
    reader = threading.Thread(target=lambda: received.extend(child.receive()[0] for _ in range(count)))
    reader.start()
    async with asyncio.timeout(20):
        await asyncio.gather(*senders)
    reader.join(timeout=20)
    assert received == [Large(bytes([number]) * 50_000) for number in range(count)]


async def test_a_sender_that_waits_can_be_cancelled_and_the_channel_goes_on(
    ends: tuple[Channel[Message], Channel[Message]],
) -> None:
    service, child = ends
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await service.asend(Large(b"x" * 50_000))
            sent += 1

    flooding = asyncio.create_task(flood())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not flooding.done()
    flooding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flooding
    for _ in range(sent):
        child.receive()
    await service.asend(Small(7))
    assert child.receive() == (Small(7), [])


async def test_a_receiver_that_was_cancelled_loses_no_message(
    ends: tuple[Channel[Message], Channel[Message]],
) -> None:
    service, child = ends
    waiting = asyncio.create_task(service.areceive())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    child.send(Small(9))
    async with asyncio.timeout(5):
        assert await service.areceive() == (Small(9), [])
