"""One model's process: started when wanted, watched, ended when idle."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.engine.interface import ModelState
from metalscribe.engine.messages import FromModel, Heartbeat, Load, Loaded, LoadFailed
from metalscribe.media.decode import signal_name

_SILENCE_SECONDS: Final = 20.0
"""A process that sends no heartbeat for so long is stuck (stopped, swapping, its interpreter blocked)."""

_LOADING_SECONDS: Final = 1800.0
"""No model takes so long to load or to unload, be it from a network drive."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelProcessOptions:
    """What to load and how long to keep it; see the settings of the same names."""

    path: Path
    name: str
    device: str = "auto"
    compute_type: str = "auto"
    cpu_threads: int = 0
    idle_timeout_secs: float = 300.0
    gpu_poll_interval_secs: float = 30.0


class ModelProcess:
    """The model's process and its state.

    Args:
        on_message: called with what the loaded model says.
        on_change: called after every change of :attr:`state`; when a ready process is lost, its rows have to be queued again.
        busy: whether there is work; an idle model is unloaded, a busy one is not.
    """

    def __init__(
        self,
        options: ModelProcessOptions,
        *,
        on_message: Callable[[FromModel], None],
        on_change: Callable[[ModelState], None],
        busy: Callable[[], bool],
    ) -> None:
        self._options = options
        self._on_message = on_message
        self._on_change = on_change
        self._busy = busy
        self.state = ModelState.UNLOADED
        self.detail = ""
        self.loaded: Loaded | None = None
        self._channel: Channel[FromModel] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._last_sign = 0.0
        self._last_work = 0.0
        self._unload_requested = False
        self._since = time.monotonic()
        self._settled = asyncio.Event()

    def want(self) -> None:
        """Load the model unless that is under way or done; a load that fails is tried again and again."""
        if self._life is not None and not self._life.done():
            return
        self._change(ModelState.LOADING)
        # A context of its own: the model outlives the request that wanted it, and its log lines shall not name that one.
        self._life = asyncio.create_task(self._live(), name="model", context=contextvars.Context())

    async def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Say something to the model.

        Raises:
            ChannelClosed: it is not there.
        """
        if self._channel is None:
            raise ChannelClosed
        await self._channel.asend(message, descriptors)

    def worked(self) -> None:
        """Idle time counts from now."""
        self._last_work = time.monotonic()

    def kill(self, reason: str) -> None:
        """End a process that hangs; :meth:`want` starts a new one."""
        _log.error("model process killed", reason=reason)
        self.detail = reason
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def settled(self, patience: float) -> None:
        """Wait until the model is not loading any more, for ``patience`` seconds at most."""
        if self.state is ModelState.LOADING:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._settled.wait()

    def stuck(self) -> str | None:
        """What should have ended long ago and has not, None while all is well."""
        now = time.monotonic()
        if self.state in {ModelState.LOADING, ModelState.UNLOADING} and now - self._since > _LOADING_SECONDS:
            return f"the model has been {self.state} for {now - self._since:.0f} s"
        if self.state is ModelState.READY and now - self._last_sign > 4 * _SILENCE_SECONDS:
            return f"the model's process was silent for {now - self._last_sign:.0f} s and could not be ended"
        return None

    async def unload(self) -> None:
        """End the process and with it free all of its memory; no-op where there is none."""
        if self._life is not None and not self._life.done():
            self._change(ModelState.UNLOADING)
            self._unload_requested = True
            self._life.cancel()
            await asyncio.wait({self._life})
        self._change(ModelState.UNLOADED)

    # --- the life of one process ---

    async def _live(self) -> None:
        self._unload_requested = False
        try:
            while not await self._loaded():  # noqa: ASYNC110  (a timer, not a poll for an event)
                # Whatever it was, it may be over by then: memory given back, a driver reloaded, a model mended.
                await asyncio.sleep(self._options.gpu_poll_interval_secs)
            self.worked()
            self._last_sign = time.monotonic()
            self._change(ModelState.READY)
            await self._serve()
        except (ChannelClosed, msgspec.DecodeError):
            status = await self._end()
            _log.error("model process died", status=_describe(status))
            self._change(ModelState.UNLOADED, f"the model's process died ({_describe(status)})")
        finally:
            await self._end()
            if self._unload_requested is False and self.state is ModelState.READY:
                self._change(ModelState.UNLOADED)

    async def _loaded(self) -> bool:
        """Try to load once; a failure is in :attr:`state` and :attr:`detail`."""
        try:
            failure = await self._load()
        except (ChannelClosed, msgspec.DecodeError):
            killed = self.detail
            status = _describe(await self._end())
            failure = LoadFailed(killed or f"the model's process died while loading ({status})", out_of_memory=False)
        if failure is None:
            return True
        _log.error("model failed to load", model=self._options.name, reason=failure.detail)
        waiting = ModelState.WAITING_FOR_GPU if failure.out_of_memory else ModelState.FAILED
        self._change(waiting, failure.detail)
        return False

    async def _load(self) -> LoadFailed | None:
        await self._end()
        if self.state is not ModelState.WAITING_FOR_GPU:
            self._change(ModelState.LOADING)
        ours, theirs = Channel.pair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "metalscribe.engine.worker", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=_environment(),
            )
        channel: Channel[FromModel] = Channel(ours, FromModel)
        self._channel = channel
        options = self._options
        await channel.asend(Load(str(options.path), options.device, options.compute_type, options.cpu_threads))
        while True:
            message, _ = await channel.areceive()
            if isinstance(message, LoadFailed):
                await self._end()
                return message
            if isinstance(message, Loaded):
                self.loaded = message
                _log.info(
                    "model loaded",
                    model=options.name,
                    device=message.device,
                    compute_type=message.compute_type,
                    load_seconds=round(message.load_seconds, 3),
                )
                return None

    async def _serve(self) -> None:
        channel = self._channel
        if channel is None:
            raise ChannelClosed
        watch = asyncio.create_task(self._watch(), name="model watch")
        try:
            while True:
                message, _ = await channel.areceive()
                self._last_sign = time.monotonic()
                if not isinstance(message, Heartbeat):
                    self._on_message(message)
                elif self._idle():
                    _log.info("model unloaded", reason=f"idle for {self._options.idle_timeout_secs:g} s")
                    self._change(ModelState.UNLOADING)
                    return
        finally:
            watch.cancel()
            if self.state is ModelState.UNLOADING and not self._unload_requested:
                await self._end()
                self._change(ModelState.UNLOADED)

    def _idle(self) -> bool:
        if self._busy():
            self.worked()
            return False
        timeout = self._options.idle_timeout_secs
        return timeout > 0 and time.monotonic() - self._last_work >= timeout

    async def _watch(self) -> None:
        """Kill the process when its heartbeat stops; a clock that jumps (suspend) costs one extra round."""
        while True:
            seen = self._last_sign
            await asyncio.sleep(_SILENCE_SECONDS)
            if self._last_sign == seen:
                self.kill(f"no heartbeat for {_SILENCE_SECONDS:g} s")

    async def _end(self) -> int | None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is None:
            return None
        # A process that hung up by itself (a crash) is about to exit with its own status; leave it a moment to do so.
        # Not asyncio.timeout: this also runs in a task that is being cancelled, where Python 3.11 mistakes the two.
        waiting = asyncio.ensure_future(process.wait())
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        if not done:
            with suppress(ProcessLookupError):
                process.kill()
        return await waiting

    def _change(self, state: ModelState, detail: str = "") -> None:
        if (state, detail) != (self.state, self.detail):
            if state is not self.state:
                self._since = time.monotonic()
            self.state, self.detail = state, detail
            if state is ModelState.LOADING:
                self._settled.clear()
            else:
                self._settled.set()
            self._on_change(state)


def _describe(status: int | None) -> str:
    if status is None:
        return "no status"
    return signal_name(-status) if status < 0 else f"status {status}"


def _environment() -> dict[str, str]:
    """What the model's process may know: where things are, and what concerns the GPU and threads. No secrets."""
    prefixes = ("CUDA_", "NVIDIA_", "OMP_", "MKL_", "CT2_", "LC_")
    names = {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "TZ"}
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith(prefixes)}
    return kept | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
