"""``python -m cenote``: the console command."""

from cenote.cli import main

main()
