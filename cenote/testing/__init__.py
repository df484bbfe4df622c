"""The contract suite: tests that every `VectorStore` must pass, for authors of other stores too.

Requires the extra ``cenote[testing]``. The test file of a store needs only a few lines::

    from cenote.testing import VectorStoreContract

    class TestMyStore(VectorStoreContract):
        @pytest.fixture
        def make_store(self):
            async def make(dimensions, **options):
                return MyStore(dimensions, **options)
            return make

The tests expect the scores of the store's property ``metric``.

Set pytest-asyncio to its automatic mode (``asyncio_mode = "auto"``). For readable failures, call
``pytest.register_assert_rewrite("cenote.testing")`` in the conftest before importing this package.
"""

from cenote.testing.basics import BasicContract
from cenote.testing.documents import DocumentContract
from cenote.testing.full_text import TextContract
from cenote.testing.helpers import MakeStore, embedded, expected_score, found, stored
from cenote.testing.searches import SearchContract

__all__ = [
    "MakeStore",
    "VectorStoreContract",
    "embedded",
    "expected_score",
    "found",
    "stored",
]


class VectorStoreContract(BasicContract, DocumentContract, SearchContract, TextContract):
    """Tests for every rule of `VectorStore`. Subclasses override the fixture ``make_store``."""
