"""The models that tests load: English-only tiny.en, and multilingual base for whatever needs languages."""

from __future__ import annotations

from bench.models import ModelNotInstalled, base_model, demo_model

__all__ = ["ModelNotInstalled", "base_model", "demo_model"]
