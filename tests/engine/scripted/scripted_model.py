"""A model's process without a model: speaks the real protocol over the real channel, and misbehaves as its script says.

Stands in for ``metalscribe.engine.worker`` where a test needs what a sound model on a sound machine never does, or needs it a
thousand times. The model's directory holds the script, ``script.json``; see :class:`scripted.Script` for what may be in it.
The text of a row is a digest of its samples, so that a mix-up of recordings shows.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.engine.messages import (
    AlignedWord,
    Batch,
    BatchDone,
    BatchFailed,
    CloseSource,
    FromModel,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    OpenSource,
    Row,
    RowDone,
    ToModel,
)

_OUT_OF_MEMORY = "CUDA failed with error out of memory (scripted)"


class Scripted:
    def __init__(self, channel: Channel[ToModel]) -> None:
        self.channel = channel
        self.sending = threading.Lock()
        self.batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self.sources: dict[int, tuple[mmap.mmap, int]] = {}
        self.beating = threading.Event()

    def run(self) -> None:
        order, _ = self.channel.receive()
        assert isinstance(order, Load)
        self.directory = Path(order.path)
        self.beating.set()
        threading.Thread(target=self.beat, args=(self.script()["heartbeat"],), daemon=True).start()
        what = self.choose("loads")
        if what == "oom":
            self.send(LoadFailed(_OUT_OF_MEMORY, out_of_memory=True))
            return
        if what == "fail":
            self.send(LoadFailed("the weights are damaged (scripted)", out_of_memory=False))
            return
        self.misbehave(what)
        self.send(Loaded("cpu", "int8", 0.001, 0.001))
        threading.Thread(target=self.listen, daemon=True).start()
        while True:
            self.decode(self.batches.get())

    def decode(self, batch: Batch) -> None:
        what = self.choose("batches")
        if what == "oom":
            self.send(BatchFailed(batch.batch, _OUT_OF_MEMORY, out_of_memory=True))
            return
        if what == "fail":
            self.send(BatchFailed(batch.batch, "it went wrong (scripted)", out_of_memory=False))
            return
        self.misbehave(what)
        for row in batch.rows:
            text = self.text(row)
            if text is not None:
                self.send(answer(row, text))
        self.send(BatchDone(batch.batch, 0.001, 0.001))

    def misbehave(self, what: str) -> None:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "mute":
            self.beating.clear()
            time.sleep(3600)
        elif what == "hang":
            time.sleep(3600)
        elif what == "hold":
            while not (self.directory / "released").exists():
                time.sleep(0.005)
        else:
            assert what == "ok", what

    def script(self) -> Any:
        return json.loads((self.directory / "script.json").read_text())

    def choose(self, occasion: str) -> str:
        """What to do this time; which time it is, is counted over all processes in the length of a file."""
        with (self.directory / occasion).open("ab") as count:
            time_ = count.tell()
            count.write(b".")
        script = self.script()
        given = script[occasion]
        if time_ < len(given):
            return str(given[time_])
        dice = random.Random(f"{script['seed']} {occasion} {time_}").random()
        for what, chance in script["chances"].get(occasion, {}).items():
            if dice < chance:
                return str(what)
            dice -= chance
        return "ok"

    def text(self, row: Row) -> str | None:
        known = self.sources.get(row.source)
        if known is None:
            return None
        ring, capacity = known
        start = row.start % capacity
        first = min(row.length, capacity - start)
        samples = ring[start * 4 : (start + first) * 4] + ring[: (row.length - first) * 4]
        return " " + hashlib.sha256(samples).hexdigest()[:12]

    def listen(self) -> None:
        try:
            while True:
                message, descriptors = self.channel.receive()
                match message:
                    case Batch():
                        self.batches.put(message)
                    case OpenSource(source=source, capacity=capacity):
                        self.sources[source] = (mmap.mmap(descriptors[0], capacity * 4, prot=mmap.PROT_READ), capacity)
                        os.close(descriptors[0])
                    case CloseSource(source=source):
                        self.sources.pop(source, None)
        except ChannelClosed:
            os._exit(0)

    def beat(self, seconds: float) -> None:
        while True:
            self.beating.wait()
            self.send(Heartbeat())
            time.sleep(seconds)

    def send(self, message: FromModel) -> None:
        try:
            with self.sending:
                self.channel.send(message)
        except ChannelClosed:
            os._exit(0)


def answer(row: Row, text: str) -> RowDone:
    return RowDone(
        row=row.row,
        text=text,
        tokens=[1, 2, 3],
        language="en",
        language_probability=1.0,
        avg_logprob=-0.1,
        no_speech_prob=0.0,
        compression_ratio=1.0,
        words=[AlignedWord(0.0, row.length / 16_000, text, 1.0)],
        advance=row.length / 16_000,
    )


if __name__ == "__main__":
    Scripted(Channel(socket.socket(fileno=int(sys.argv[1])), ToModel)).run()
