"""A FastAPI application with users, documents and its own migrations, and cenote among them.

``python -m examples.document_search`` starts it; ``make app`` installs what it needs first.
"""
