"""Use cenote as a LlamaIndex vector store."""

from cenote.adapters.llama_index.store import CenoteVectorStore

__all__ = ["CenoteVectorStore"]
