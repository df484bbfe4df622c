"""Haystack document store backed by a cenote store. Needs the extra ``cenote[haystack]``."""

from cenote.adapters.haystack.store import CenoteDocumentStore, CenoteEmbeddingRetriever

__all__ = ["CenoteDocumentStore", "CenoteEmbeddingRetriever"]
