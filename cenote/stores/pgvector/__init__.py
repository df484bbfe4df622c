"""Store chunks in Postgres with pgvector, through the application's SQLAlchemy engine."""

from cenote.stores.pgvector.store import PgVectorStore

__all__ = ["PgVectorStore"]
