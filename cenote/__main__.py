"""Run the ``cenote`` command with ``python -m cenote``."""

from cenote.cli import main

main()
