"""Benchmarks of metalscribe against bare faster-whisper: ``python -m bench --help``, explained in ``docs/performance.md``."""
