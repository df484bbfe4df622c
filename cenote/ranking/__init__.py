"""Rank chunks outside the database: fuse rankings, diversify them, score words by BM25."""
