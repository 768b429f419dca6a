"""What the service knows of the chunker, which itself (:mod:`metalscribe.engine.stage`) runs in the decoders' sandbox."""

from __future__ import annotations

from typing import Final

from metalscribe.media.pcm import SAMPLE_RATE

STAGE: Final = "metalscribe.engine.stage:stage"
"""The stage that makes chunks, as the decoder pool wants it named."""

CHUNK_SECONDS: Final = 30.0
"""Whisper's window; no chunk is longer."""

CHUNK_SAMPLES: Final = int(CHUNK_SECONDS * SAMPLE_RATE)
