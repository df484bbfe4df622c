"""LlamaIndex vector store backed by a cenote store. Needs the extra ``cenote[llama-index]``."""

from cenote.adapters.llama_index.store import CenoteVectorStore

__all__ = ["CenoteVectorStore"]
