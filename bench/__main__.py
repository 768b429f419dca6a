from __future__ import annotations

import sys

from bench.cli import app
from bench.errors import BenchmarkError
from metalscribe.errors import MetalscribeError

if __name__ == "__main__":
    try:
        app(prog_name="python -m bench")
    except (BenchmarkError, MetalscribeError) as error:
        sys.exit(str(error))
