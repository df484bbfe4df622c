"""Semantic search over the docstrings of Python's standard library.

Run it with ``python -m examples.stdlib_search`` from the root of the repository, or with
``make demo``, which also installs its dependencies.
"""
