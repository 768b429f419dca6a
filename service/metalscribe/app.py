"""The composition root: settings → store → engine → HTTP. The only place that wires things together."""

from __future__ import annotations

from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.weights import describe, resolve
from metalscribe.settings import Settings, WhenUnloaded


def build_engine(settings: Settings) -> LocalEngine:
    """The engine for these settings; does not load the model yet.

    Raises:
        ModelMissing: the model is not on this machine, or is damaged.
    """
    files = resolve(settings.model, settings.models_dir, offline=settings.offline)
    card = describe(files.path, name=files.name)
    process = ModelProcessOptions(
        path=files.path,
        name=files.name,
        device=settings.device.value,
        compute_type=settings.compute_type,
        cpu_threads=settings.cpu_threads,
        idle_timeout_secs=settings.idle_timeout_secs,
        gpu_poll_interval_secs=settings.gpu_poll_interval_secs,
    )
    return LocalEngine(
        card,
        EngineOptions(
            model=process,
            batch_size=settings.batch_size,
            beam_size=settings.beam_size,
            max_queue=settings.max_queue,
            max_audio_seconds=settings.max_audio_hours * 3600,
            load_timeout_secs=settings.load_timeout_secs,
            preload=settings.preload,
            reject_when_unloaded=settings.when_unloaded is WhenUnloaded.REJECT,
        ),
    )
