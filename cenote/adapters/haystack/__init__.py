"""Use cenote as a Haystack document store, with a retriever for pipelines."""

from cenote.adapters.haystack.store import CenoteDocumentStore, CenoteEmbeddingRetriever

__all__ = ["CenoteDocumentStore", "CenoteEmbeddingRetriever"]
