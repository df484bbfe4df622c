"""The contract suite: what every `VectorStore` must pass, for the authors of other stores too.

Needs the extra ``cenote[testing]``. A store's test file is a few lines::

    from cenote.testing import VectorStoreContract

    class TestMyStore(VectorStoreContract):
        @pytest.fixture
        def make_store(self):
            async def make(dimensions, **options):
                return MyStore(dimensions, **options)
            return make

with pytest-asyncio in its automatic mode (``asyncio_mode = "auto"``). For readable failures call
``pytest.register_assert_rewrite("cenote.testing")`` in the conftest before importing this.
"""

from cenote.testing.contract import BasicContract
from cenote.testing.documents import DocumentContract
from cenote.testing.helpers import MakeStore, embedded, found, stored
from cenote.testing.shapes import SearchContract
from cenote.testing.words import TextContract

__all__ = ["MakeStore", "VectorStoreContract", "embedded", "found", "stored"]


class VectorStoreContract(BasicContract, DocumentContract, SearchContract, TextContract):
    """One test for each rule of `VectorStore`; subclasses give the fixture ``make_store``."""
