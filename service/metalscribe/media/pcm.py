"""The samples that recordings become, 16 kHz mono, float32: how fast they come, and in what amounts."""

from __future__ import annotations

from typing import Final

SAMPLE_RATE: Final = 16_000
"""Samples per second that Whisper and Silero want."""

BLOCK: Final = 32_768
"""Samples per block, about two seconds: a whole number of voice activity windows (512)."""
