"""The statements of `PgVectorStore` over its table, built once and then reused."""

from cenote.stores.statements.reading import ReadStatements
from cenote.stores.statements.searching import SearchStatements
from cenote.stores.statements.writing import WriteStatements

__all__ = ["ReadStatements", "SearchStatements", "WriteStatements"]
