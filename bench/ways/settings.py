"""metalscribe's settings in a benchmark.

Other ``METALSCRIBE_`` variables of the environment reach both of its ways, so that a setting can be tried out.
"""

from __future__ import annotations

from bench.ways.way import Setup


def service_settings(setup: Setup) -> dict[str, object]:
    """By field name; the model is loaded at the start and kept, and nobody is refused for being too many."""
    return {
        "model": setup.model,
        "device": setup.device,
        "compute_type": setup.compute_type,
        "preload": True,
        "offline": True,
        "idle_timeout_secs": 0,
        "max_queue": 4096,
        "state_dir": setup.scratch / "state",
    }
