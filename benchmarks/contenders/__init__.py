"""The contenders of the comparison, by name.

Each contender runs in its own process (`benchmarks.worker`), under the interpreter that has its
library. Only that process imports the contender's module, so this module imports none of them.
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
        module, name: Module and name of its class.
        arguments: Arguments of the class.
        environment: Virtual environment with its library; None for cenote's environment.
        table_of: Contender whose table it searches; None if it has its own table.
        tunes: Contender whose loaded table it gets a copy of, and adds its own indexes to; None if
            it loads its table itself.
    """

    module: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    table_of: str | None = None
    tunes: str | None = None

    def make(self) -> Contender:
        """Create the contender, in a process that has its library."""
        module = importlib.import_module(f"benchmarks.contenders.{self.module}")
        contender: Contender = getattr(module, self.name)(**self.arguments)
        return contender


_TUNED = {"tuned": True}

CONTENDERS = {
    "floor": Entry("floor", "Floor"),
    "floor-exact": Entry("floor", "Floor", {"exact": True}, table_of="floor"),
    "complete": Entry("complete", "Complete", table_of="cenote"),
    "original": Entry("original", "Original"),
    "langchain": Entry("langchain", "Langchain", environment="langchain"),
    "langchain-tuned": Entry(
        "langchain", "Langchain", _TUNED, environment="langchain", tunes="langchain"
    ),
    "llama-index": Entry("llama", "LlamaIndex", environment="llama"),
    "llama-index-tuned": Entry("llama", "LlamaIndex", _TUNED, environment="llama"),
    "vecs": Entry("vecs_client", "Vecs", environment="vecs"),
    "vecs-tuned": Entry("vecs_client", "Vecs", _TUNED, environment="vecs", tunes="vecs"),
    "cenote": Entry("cenote_store", "Cenote"),
    "cenote-measured": Entry("cenote_store", "Cenote", {"measured": True}, table_of="cenote"),
}
