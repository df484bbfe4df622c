"""Python's standard library, searched by meaning: cenote's main job on real text.

``python -m examples.stdlib_search`` from the repository's root; ``make demo`` installs first.
"""
