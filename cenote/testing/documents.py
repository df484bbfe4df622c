"""Contract tests for reading, deleting, changing metadata and synchronising documents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cenote.errors import DimensionMismatchError, InvalidInputError
from cenote.filters.language import field, meta
from cenote.models import Chunk, EmbeddedChunk, SyncResult
from cenote.stores.protocol import VectorStore
from cenote.testing.helpers import NAMESPACE, MakeStore, embedded, found, stored


def chunk(chunk_id: str, content: str = "some text", **fields: Any) -> Chunk:
    """Return a chunk without an embedding."""
    return embedded(chunk_id, content=content, **fields).chunk


class DocumentContract:
    """Part of `cenote.testing.VectorStoreContract`."""

    # -- reading

    async def test_get_keeps_the_order_of_the_ids(self, store: VectorStore) -> None:
        """Each chunk appears once; ids that do not exist in the namespace are left out."""
        await store.upsert([embedded(id, metadata={"id": id}) for id in "abc"], NAMESPACE)
        await store.upsert([embedded("d")], "other")
        chunks = await store.get(["c", "a", "d", "c", "nothing"], NAMESPACE)
        assert [(chunk.id, chunk.metadata) for chunk in chunks] == [
            ("c", {"id": "c"}),
            ("a", {"id": "a"}),
        ]
        assert len(await store.get(iter("ab"), NAMESPACE)) == 2  # type: ignore[arg-type]
        assert await store.get([], NAMESPACE) == []
        assert await store.get(["a"], "nobody") == []

    async def test_embeddings_are_read_by_id(self, store: VectorStore) -> None:
        """Embeddings come back as written, including zero vectors, from one namespace only."""
        vectors = {"a": [3.0, 0.5, -0.25, 0.125], "b": [0.0] * 4, "c": [1024.0, 2.0, 0.0, 0.0]}
        await store.upsert([embedded(id, vector) for id, vector in vectors.items()], NAMESPACE)
        await store.upsert([embedded("d")], "other")
        embeddings = await store.get_embeddings(["c", "a", "d", "b", "c", "nothing"], NAMESPACE)
        assert embeddings.keys() == vectors.keys()
        for id, vector in embeddings.items():
            assert vector.shape == (store.dimensions,)
            assert vector.tolist() == pytest.approx(vectors[id], rel=1e-6)
        embeddings["a"][:] = 0
        unchanged = await store.get_embeddings(iter("a"), NAMESPACE)  # type: ignore[arg-type]
        assert unchanged["a"].any()
        assert await store.get_embeddings([], NAMESPACE) == {}
        assert await store.get_embeddings(["a"], "nobody") == {}

    async def test_pages_are_by_id(self, store: VectorStore) -> None:
        """`after` continues from the last id of the previous page, with and without a filter."""
        await store.upsert([embedded(id) for id in "dBaäc"], NAMESPACE)
        first = await store.list_chunks(NAMESPACE, limit=2)
        assert [chunk.id for chunk in first] == ["B", "a"]
        second = await store.list_chunks(NAMESPACE, after="a", limit=2)
        assert [chunk.id for chunk in second] == ["c", "d"]
        last = await store.list_chunks(NAMESPACE, after="d")
        assert [chunk.id for chunk in last] == ["ä"]
        assert await store.list_chunks(NAMESPACE, after="ä") == []
        filtered = await store.list_chunks(NAMESPACE, field("id") > "b", after="c", limit=1)
        assert [chunk.id for chunk in filtered] == ["d"]

    async def test_chunks_are_counted(self, store: VectorStore) -> None:
        """`count` counts a whole namespace, or the chunks that match a filter."""
        chunks = [embedded(id, metadata={"n": number}) for number, id in enumerate("abc")]
        await store.upsert(chunks, "zeta")
        assert await store.count("zeta") == 3
        assert await store.count("zeta", {"n": 1}) == 1
        assert await store.count("zeta", meta("n") >= 1) == 2
        assert await store.count("nobody") == 0

    async def test_namespaces_are_listed(self, store: VectorStore) -> None:
        """Names come in code-point order, each with its number of chunks."""
        for namespace, ids in (("zeta", "abc"), ("Alpha", "a")):
            await store.upsert([embedded(id) for id in ids], namespace)
        assert list((await store.list_namespaces()).items()) == [("Alpha", 1), ("zeta", 3)]
        await store.delete_namespace("Alpha")
        assert await store.list_namespaces() == {"zeta": 3}

    async def test_neighbours(self, store: VectorStore) -> None:
        """Neighbours belong to the same document; positions may have gaps and duplicates."""
        positions = {"e": -1, "a": 0, "b": 10, "c": 10, "d": 2**40}
        chunks = [embedded(id, position=position) for id, position in positions.items()]
        others = [embedded("x", position=5, document_id="other")]
        await store.upsert(chunks + others, NAMESPACE)

        async def around(chunk_id: str, **numbers: int) -> str:
            chunks = await store.neighbours(chunk_id, NAMESPACE, **numbers)
            return "".join(chunk.id for chunk in chunks)

        assert await around("b") == "abc"
        assert await around("b", before=0, after=0) == "b"
        assert await around("c", before=2) == "abcd"
        assert await around("e", before=3, after=9) == "eabcd"
        assert await around("x") == "x"
        assert await around("nothing") == ""

    # -- deleting and changing

    async def test_documents_are_deleted(self, store: VectorStore) -> None:
        """`delete_document` deletes all chunks of a document in one namespace."""
        await store.upsert([embedded(id, document_id="d1") for id in "ab"], NAMESPACE)
        await store.upsert([embedded("c", document_id="d2")], NAMESPACE)
        await store.upsert([embedded("a", document_id="d1")], "other")
        assert await store.delete_document("d1", NAMESPACE) == 2
        assert await store.delete_document("d1", NAMESPACE) == 0
        assert [chunk.id for chunk in await stored(store)] == ["c"]
        assert len(await stored(store, "other")) == 1

    async def test_matching_chunks_are_deleted(self, store: VectorStore) -> None:
        """A filter that matches every chunk is rejected and deletes nothing."""
        chunks = [embedded(id, metadata={"n": number}) for number, id in enumerate("abc")]
        await store.upsert(chunks, NAMESPACE)
        match_all: list[Any] = [
            *(None, {}, {"$and": []}, {"$and": [{}]}, {"$or": [{}]}, {"$not": {"$or": []}}),
            {"n": {"$nin": []}},
            meta("n").not_in([]) | (meta("n") == 1),
        ]
        for filter in match_all:
            with pytest.raises(InvalidInputError) as error:
                await store.delete_matching(filter, NAMESPACE)
            assert error.value.field == "filter"
        assert await store.delete_matching(meta("n") >= 1, NAMESPACE) == 2
        assert await store.delete_matching({"n": 1}, "nobody") == 0
        assert [chunk.id for chunk in await stored(store)] == ["a"]
        assert await found(store, [1, 0, 0, 0], NAMESPACE) == ["a"]

    async def test_metadata_is_updated(self, store: VectorStore) -> None:
        """Metadata is replaced or merged, filters use the new values, nothing else changes."""
        await store.upsert(
            [embedded("a", [0, 1, 0, 0], metadata={"x": 1, "y": {"z": 1}}), embedded("b")],
            NAMESPACE,
        )
        (before, _) = await stored(store)
        changes = {"a": {"x": 2}, "nothing": {"x": 3}}
        assert await store.update_metadata(changes, NAMESPACE, merge=True) == 1
        assert (await stored(store))[0].metadata == {"x": 2, "y": {"z": 1}}
        assert await store.update_metadata(changes, NAMESPACE, merge=True) == 0
        assert await store.update_metadata(changes, NAMESPACE) == 1
        (after, _) = await stored(store)
        assert (after.metadata, after.content) == ({"x": 2}, before.content)
        assert await found(store, [0, 1, 0, 0], NAMESPACE, 1, {"x": 2}) == ["a"]
        assert await found(store, [0, 1, 0, 0], NAMESPACE, 1, meta("y").exists()) == []
        assert await store.update_metadata({}, NAMESPACE) == 0
        assert await store.update_metadata(changes, "nobody") == 0

    async def test_invalid_metadata_changes_nothing(self, store: VectorStore) -> None:
        """One invalid entry rejects the whole update."""
        await store.upsert([embedded("a", metadata={"x": 1})], NAMESPACE)
        with pytest.raises(InvalidInputError) as error:
            await store.update_metadata({"a": {"x": 2}, "b": {"x": float("nan")}}, NAMESPACE)
        assert (error.value.field, error.value.chunk_id) == ("metadata", "b")
        assert (await stored(store))[0].metadata == {"x": 1}

    # -- synchronising

    async def test_missing_chunks(self, make_store: MakeStore) -> None:
        """Chunks that are new or whose content changed have to be embedded."""
        store = await make_store(4)
        await store.upsert([embedded("a", content="old"), embedded("b", content="same")], NAMESPACE)
        chunks = [chunk("c"), chunk("b", "same", position=7), chunk("a", "new")]
        assert await store.missing(chunks, NAMESPACE) == [chunks[0], chunks[2]]
        assert await store.missing(chunks, "nobody") == chunks
        assert await store.missing([], NAMESPACE) == []

    async def test_a_document_is_synchronised(self, store: VectorStore) -> None:
        """Changed chunks are written, obsolete ones deleted; other documents stay as they are."""
        await store.upsert([embedded("x", document_id="other")], NAMESPACE)
        first = [embedded(id, content=id) for id in "abc"]
        result = await store.sync_document("doc", first, NAMESPACE)
        assert result == SyncResult(written=3, removed=0, unchanged=0)
        assert await store.sync_document("doc", first, NAMESPACE) == SyncResult(
            written=0, removed=0, unchanged=3
        )
        second: list[EmbeddedChunk | Chunk] = [
            first[0],
            chunk("b", "b", position=4, metadata={"moved": True}),
            embedded("d", [0, 1, 0, 0], content="d"),
        ]
        result = await store.sync_document("doc", second, NAMESPACE)
        assert result == SyncResult(written=2, removed=1, unchanged=1)
        assert [chunk.id for chunk in await stored(store)] == ["a", "b", "d", "x"]
        (kept,) = await store.get(["b"], NAMESPACE)
        assert (kept.position, kept.metadata) == (4, {"moved": True})
        assert await found(store, [1, 0, 0, 0], NAMESPACE, 2, {"moved": True}) == ["b"]
        assert await store.sync_document("doc", [], NAMESPACE) == SyncResult(
            written=0, removed=3, unchanged=0
        )
        assert [chunk.id for chunk in await stored(store)] == ["x"]

    async def test_an_invalid_document_changes_nothing(self, store: VectorStore) -> None:
        """Invalid chunks are rejected, and so are new contents without an embedding."""
        await store.sync_document("doc", [embedded("a"), embedded("b")], NAMESPACE)
        before = await stored(store)
        invalid: list[tuple[Any, str]] = [
            ([embedded("c"), chunk("a", "changed")], "embedding"),
            ([embedded("c"), chunk("new")], "embedding"),
            ([embedded("c"), embedded("c")], "chunks"),
            ([embedded("c", document_id="other")], "document_id"),
            ([embedded("c", [1.0])], "embedding"),
            ([7], "chunks"),
            ("ab", "chunks"),
        ]
        for chunks, field_name in invalid:
            with pytest.raises(InvalidInputError) as error:
                await store.sync_document("doc", chunks, NAMESPACE)
            assert error.value.field == field_name
            assert await stored(store) == before
        with pytest.raises(DimensionMismatchError):
            await store.sync_document("doc", [embedded("c", [1.0])], NAMESPACE)

    async def test_two_synchronisations_at_once(self, store: VectorStore) -> None:
        """Concurrent calls for one document end in the state of one of them."""
        states = [
            [embedded(f"{version}{number}", content=version) for number in range(20)]
            + [embedded("shared", content=version)]
            for version in "ab"
        ]
        for _ in range(5):
            await asyncio.gather(
                *(store.sync_document("doc", state, NAMESPACE) for state in states)
            )
            contents = {chunk.content for chunk in await stored(store)}
            assert len(contents) == 1
            assert len(await stored(store)) == 21

    @pytest.mark.parametrize(
        ("call", "field_name"),
        [
            (lambda store: store.get("abc", "n"), "chunk_ids"),
            (lambda store: store.get([7], "n"), "chunk_ids"),
            (lambda store: store.get_embeddings([7], "n"), "chunk_ids"),
            (lambda store: store.list_chunks("n", limit=0), "limit"),
            (lambda store: store.list_chunks("n", after=7), "after"),
            (lambda store: store.count("n", filter=7), "filter"),
            (lambda store: store.neighbours("a\x00", "n"), "chunk_id"),
            (lambda store: store.neighbours("a", "n", before=-1), "before"),
            (lambda store: store.neighbours("a", "n", after=True), "after"),
            (lambda store: store.delete_document("d" * 1025, "n"), "document_id"),
            (lambda store: store.update_metadata([], "n"), "metadata"),
            (lambda store: store.update_metadata({7: {}}, "n"), "chunk_id"),
            (lambda store: store.missing("abc", "n"), "chunks"),
            (lambda store: store.missing([7], "n"), "chunks"),
            *(
                (call, "namespace")
                for call in (
                    lambda store: store.get(["a"], ""),
                    lambda store: store.list_chunks(""),
                    lambda store: store.count(""),
                    lambda store: store.neighbours("a", ""),
                    lambda store: store.delete_document("d", ""),
                    lambda store: store.delete_matching({"a": 1}, ""),
                    lambda store: store.update_metadata({}, ""),
                    lambda store: store.missing([], ""),
                    lambda store: store.sync_document("d", [], ""),
                    lambda store: store.search_many([], ""),
                )
            ),
        ],
    )
    async def test_invalid_arguments_are_named(
        self, store: VectorStore, call: Any, field_name: str
    ) -> None:
        """The error names the invalid argument."""
        with pytest.raises(InvalidInputError) as error:
            await call(store)
        assert error.value.field == field_name
