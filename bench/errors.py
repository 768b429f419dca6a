"""What a benchmark cannot be made with."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The message names what is wrong, for whoever started the benchmark."""
