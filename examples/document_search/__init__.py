"""A FastAPI application with users, documents and its own migrations, which uses cenote for search.

Start it with ``python -m examples.document_search``, or with ``make app``, which also installs its
dependencies.
"""
