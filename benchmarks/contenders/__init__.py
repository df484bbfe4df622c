"""The contenders of the comparison: a name for each, and how to make it.

Each runs in a process of its own (`benchmarks.worker`), under the interpreter that has its library.
So nothing is imported here, and a contender's module is imported by its own worker only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.contenders.base import Contender


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender.

    Attributes:
        module, name: where its class is.
        arguments: of the class.
        environment: the virtual environment that its library needs; None for cenote's own.
        table_of: the contender whose table it searches, if it writes none.
    """

    module: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    table_of: str | None = None

    def make(self) -> Contender:
        """The contender, in a process that has its library."""
        module = importlib.import_module(f"benchmarks.contenders.{self.module}")
        made: Contender = getattr(module, self.name)(**self.arguments)
        return made


_TUNED = {"tuned": True}

CONTENDERS = {
    "floor": Entry("floor", "Floor"),
    "floor-exact": Entry("floor", "Floor", {"exact": True}, table_of="floor"),
    "complete": Entry("complete", "Complete", table_of="cenote"),
    "original": Entry("original", "Original"),
    "langchain": Entry("langchain", "Langchain", environment="langchain"),
    "langchain-tuned": Entry("langchain", "Langchain", _TUNED, environment="langchain"),
    "llama-index": Entry("llama", "LlamaIndex", environment="llama"),
    "llama-index-tuned": Entry("llama", "LlamaIndex", _TUNED, environment="llama"),
    "vecs": Entry("vecs_client", "Vecs", environment="vecs"),
    "vecs-tuned": Entry("vecs_client", "Vecs", _TUNED, environment="vecs"),
    "cenote": Entry("cenote_store", "Cenote"),
}
