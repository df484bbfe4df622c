"""Adapters for other frameworks, each in its own module with its own extra."""
