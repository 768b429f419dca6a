"""``python -m metalscribe`` is ``metalscribe``."""

from metalscribe.cli import main

main()
