"""Build the statements of `PgVectorStore`."""
