"""Contract tests for full-text search and hybrid search."""

from __future__ import annotations

from typing import Any

import pytest

from cenote.errors import ConfigurationError, InvalidInputError
from cenote.filters.language import meta
from cenote.models import RetrievalResult
from cenote.ranking.fusion import RANK_CONSTANT
from cenote.stores.protocol import VectorStore
from cenote.testing.helpers import NAMESPACE, SQL_LOOKALIKES, MakeStore, embedded

NEAR = [1.0, 0.0, 0.0, 0.0]
FAR = [0.0, 1.0, 0.0, 0.0]

TEXTS = {
    "cats": "Cats sleep in the warm kitchen.",
    "dogs": "Dogs were running through gardens; dogs run.",
    "both": "A cat and a dog share one garden.",
    "none": "Submarines.",
}


def ids(results: list[RetrievalResult]) -> list[str]:
    """Return the chunk ids of results, in order."""
    return [result.chunk.id for result in results]


class TextContract:
    """Part of `cenote.testing.VectorStoreContract`."""

    @pytest.fixture
    async def text_store(self, make_store: MakeStore) -> Any:
        """A store of four dimensions with English full-text search and a few chunks."""
        store = await make_store(4, text_search="english")
        chunks = [
            embedded(
                id, [1 - number / 10, number / 10, 0.0, 0.0], content=text, metadata={"n": number}
            )
            for number, (id, text) in enumerate(TEXTS.items())
        ]
        await store.upsert(chunks, NAMESPACE)
        await store.upsert([embedded("theirs", content=TEXTS["cats"])], "other")
        return store

    async def test_any_word_matches_by_its_stem(self, text_store: VectorStore) -> None:
        """A chunk that contains more of the words ranks first."""
        results = await text_store.search_text("Which cat has a dog?", NAMESPACE)
        assert ids(results)[0] == "both"
        assert set(ids(results)) == {"both", "cats", "dogs"}
        assert {result.retriever for result in results} == {"text"}
        scores = [result.score for result in results]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] > 0
        assert results[0].chunk == (await text_store.get(["both"], NAMESPACE))[0]
        assert ids(await text_store.search_text("RUNNING", NAMESPACE)) == ["dogs"]
        assert ids(await text_store.search_text("cat dog", NAMESPACE, 1)) == ["both"]
        assert ids(await text_store.search_text("kitchens", "other")) == ["theirs"]

    async def test_long_words(self, text_store: VectorStore) -> None:
        """Words of more than 2,046 bytes are ignored, and the words around them are not."""
        long, too_long = "b" * 2_046, "c" * 2_047
        content = f"{long} {too_long} elephants {too_long}_{too_long}"
        await text_store.upsert([embedded("long", content=content)], "long")
        assert ids(await text_store.search_text("elephant", "long")) == ["long"]
        await text_store.upsert([embedded("short", content=f"{long[:900]} {long[:1_900]}")], "long")
        assert ids(await text_store.search_text(long[:1_900], "long")) == ["short"]
        assert ids(await text_store.search_text(long[:900], "long")) == ["short"]
        assert await text_store.search_text(too_long, "long") == []

    @pytest.mark.parametrize("text", ["", " \n", "?!", "zebra", "'", "\\", "&|!:*<->()"])
    async def test_texts_without_known_words(self, text_store: VectorStore, text: str) -> None:
        """Text search finds nothing; hybrid search ranks by vector alone."""
        assert await text_store.search_text(text, NAMESPACE) == []
        hybrid = await text_store.search_hybrid(text, NEAR, NAMESPACE)
        assert ids(hybrid) == ["cats", "dogs", "both", "none"]

    @pytest.mark.parametrize("text", [*SQL_LOOKALIKES, "it's a\\b & (cats", "cat' | 'dog"])
    async def test_texts_are_not_parsed_as_queries(
        self, text_store: VectorStore, text: str
    ) -> None:
        """Operators and quotes in a text have no effect."""
        await text_store.search_text(text, NAMESPACE)
        await text_store.search_hybrid(text, NEAR, NAMESPACE)
        assert await text_store.count(NAMESPACE) == 4

    async def test_text_search_with_a_filter(self, text_store: VectorStore) -> None:
        """The filter applies before the limit."""
        results = await text_store.search_text("cat dog", NAMESPACE, 1, meta("n") < 1)
        assert ids(results) == ["cats"]
        assert await text_store.search_text("cat", NAMESPACE, filter={"n": 3}) == []
        hybrid = await text_store.search_hybrid("cat", NEAR, NAMESPACE, filter={"n": {"$gte": 2}})
        assert ids(hybrid) == ["both", "none"]

    async def test_changing_the_language_of_a_chunk(self, make_store: MakeStore) -> None:
        """The new language determines the stems of the words."""
        store = await make_store(4, text_search="spanish, english")
        await store.upsert([embedded("a", content="running")], NAMESPACE)
        assert await store.search_text("runs", NAMESPACE) == []
        await store.update_metadata({"a": {"language": "english"}}, NAMESPACE)
        assert ids(await store.search_text("runs", NAMESPACE)) == ["a"]

    async def test_changed_contents(self, text_store: VectorStore) -> None:
        """Text search reflects updates and deletions at once."""
        await text_store.upsert([embedded("none", content="Cats in submarines")], NAMESPACE)
        assert set(ids(await text_store.search_text("cat", NAMESPACE))) == {"cats", "both", "none"}
        await text_store.delete(["cats"], NAMESPACE)
        assert set(ids(await text_store.search_text("cat", NAMESPACE))) == {"both", "none"}
        await text_store.update_metadata({"none": {"n": 9}}, NAMESPACE)
        (result,) = await text_store.search_text("cat", NAMESPACE, filter={"n": 9})
        assert result.chunk.metadata == {"n": 9}
        await text_store.delete_namespace(NAMESPACE)
        assert await text_store.search_text("cat", NAMESPACE) == []

    async def test_hybrid_search_fuses_both_rankings(self, text_store: VectorStore) -> None:
        """Scores follow from the ranks. By vector, the order is cats, dogs, both, none."""
        (first_by_words, *_) = ids(await text_store.search_text("gardens", NAMESPACE, 1))
        results = await text_store.search_hybrid("gardens", NEAR, NAMESPACE)
        assert {result.retriever for result in results} == {"hybrid"}
        scores = {result.chunk.id: result.score for result in results}
        assert set(scores) == set(TEXTS)
        by_vector = {id: 1 / (RANK_CONSTANT + rank) for rank, id in enumerate(TEXTS, 1)}
        by_words: dict[str, float] = {"dogs": 1 / (RANK_CONSTANT + 2)}
        by_words["both"] = by_words["dogs"]
        by_words[first_by_words] = 1 / (RANK_CONSTANT + 1)
        for id, score in scores.items():
            assert score == pytest.approx(by_vector[id] + by_words.get(id, 0.0), abs=1e-12)
        assert ids(results) == sorted(scores, key=lambda id: (-scores[id], id))

    async def test_weights_and_depth(self, text_store: VectorStore) -> None:
        """Weights scale or disable a ranking; `depth` limits the results that are fused."""
        text_only = await text_store.search_hybrid(
            "submarine", NEAR, NAMESPACE, 1, vector_weight=0.0, depth=2
        )
        assert ids(text_only) == ["none"]
        vector_only = await text_store.search_hybrid(
            "submarine", NEAR, NAMESPACE, 2, text_weight=0.001, depth=2
        )
        assert ids(vector_only) == ["cats", "dogs"]
        shallow = await text_store.search_hybrid("submarine", NEAR, NAMESPACE, 1, depth=1)
        assert ids(shallow) == ["cats"]  # both rank first, so the tie is broken by id
        assert shallow[0].score == pytest.approx(1 / (RANK_CONSTANT + 1))
        all_results = await text_store.search_hybrid("submarine", NEAR, NAMESPACE, 9, depth=1)
        assert len(all_results) == 4
        for weights, expected in (
            ({"vector_weight": 0}, ["none"]),
            ({"text_weight": 0}, ["cats", "dogs", "both", "none"]),
        ):
            options: Any = weights
            results = await text_store.search_hybrid("submarine", NEAR, NAMESPACE, **options)
            assert ids(results) == expected
        zero = await text_store.search_hybrid("submarine", [0.0] * 4, NAMESPACE)
        # By vector, a zero query finds nothing with cosine, and everything with other metrics.
        assert ids(zero)[0] == "none"
        assert set(ids(zero)) == ({"none"} if text_store.metric == "cosine" else set(TEXTS))

    async def test_ties_are_ordered_by_id(self, text_store: VectorStore) -> None:
        """Equal contents come in code-point order of their ids."""
        chunks = [embedded(id, FAR, content="equal words") for id in "bZa10é"]
        await text_store.upsert(chunks, "ties")
        assert ids(await text_store.search_text("equal", "ties")) == sorted("bZa10é")
        assert ids(await text_store.search_hybrid("equal", FAR, "ties")) == sorted("bZa10é")

    async def test_languages_of_chunks(self, make_store: MakeStore) -> None:
        """A chunk is stemmed in the language that its metadata names, by default in the first."""
        store = await make_store(4, text_search="spanish, english")
        texts: dict[str, tuple[str, dict[str, Any]]] = {
            "es": ("Los gatos caminaban por los jardines.", {}),
            "en": ("The cats were walking in gardens.", {"language": "english"}),
            "fr": ("Les jardines", {"language": "french"}),
            "En": ("She walks.", {"language": "English"}),
            "no": ("gatos", {"language": 5}),
        }
        await store.upsert(
            [
                embedded(id, content=text, metadata=metadata)
                for id, (text, metadata) in texts.items()
            ],
            NAMESPACE,
        )
        assert ids(await store.search_text("caminar", NAMESPACE)) == ["es"]
        assert set(ids(await store.search_text("walked", NAMESPACE))) == {"en", "En"}
        assert set(ids(await store.search_text("gato", NAMESPACE))) == {"es", "no"}
        assert set(ids(await store.search_text("jardín garden", NAMESPACE))) >= {"en"}
        assert set(ids(await store.search_text("jardines", NAMESPACE))) == {"es", "fr"}

    async def test_words_of_other_scripts(self, make_store: MakeStore) -> None:
        """Combining marks belong to words: several languages write their vowels with them."""
        store = await make_store(4, text_search="simple")
        texts = {"a": "हिन्दी भाषा में", "b": "भारत देश", "c": "max_size", "d": "size limit"}
        await store.upsert([embedded(id, content=text) for id, text in texts.items()], NAMESPACE)
        assert ids(await store.search_text("भाषा", NAMESPACE)) == ["a"]
        assert set(ids(await store.search_text("SIZE", NAMESPACE))) == {"c", "d"}

    async def test_a_long_content(self, text_store: VectorStore) -> None:
        """A long content is stored whole, and only its beginning is searched."""
        long = "beginning " + "x" * 300_000 + " end " + " ".join(f"w{n}" for n in range(100_000))
        await text_store.upsert([embedded("long", content=long)], "long")
        assert (await text_store.get(["long"], "long"))[0].content == long
        assert ids(await text_store.search_text("beginning", "long")) == ["long"]
        assert await text_store.search_text("end", "long") == []

    async def test_stores_without_full_text_search(self, make_store: MakeStore) -> None:
        """The error names the setting to change."""
        store = await make_store(4)
        with pytest.raises(ConfigurationError) as error:
            await store.search_text("cat", NAMESPACE)
        assert error.value.setting == "text_search"
        with pytest.raises(ConfigurationError):
            await store.search_hybrid("cat", NEAR, NAMESPACE)

    @pytest.mark.parametrize(
        ("call", "field_name"),
        [
            (lambda store: store.search_text(None, "n"), "text"),
            (lambda store: store.search_text("a\x00", "n"), "text"),
            (lambda store: store.search_text("a", ""), "namespace"),
            (lambda store: store.search_text("a", "n", 0), "limit"),
            (lambda store: store.search_text("a", "n", 10_001), "limit"),
            (lambda store: store.search_text("a", "n", 1, 7), "filter"),
            (lambda store: store.search_hybrid(7, NEAR, "n"), "text"),
            (lambda store: store.search_hybrid("a", [1.0], "n"), "query_vector"),
            (lambda store: store.search_hybrid("a", NEAR, "n", depth=0), "depth"),
            (lambda store: store.search_hybrid("a", NEAR, "n", depth=10_001), "depth"),
            (lambda store: store.search_hybrid("a", NEAR, "n", 10_001), "limit"),
            (lambda store: store.search_hybrid("a", NEAR, "n", text_weight=-1), "text_weight"),
            (lambda store: store.search_hybrid("a", NEAR, "n", text_weight=10**400), "text_weight"),
            (lambda store: store.search_hybrid("a", NEAR, "n", text_weight=5e-324), "text_weight"),
            (lambda store: store.search_hybrid("a", NEAR, "n", vector_weight="1"), "vector_weight"),
            (
                lambda store: store.search_hybrid("a", NEAR, "n", text_weight=0, vector_weight=0),
                "text_weight",
            ),
        ],
    )
    async def test_invalid_text_search_arguments_are_named(
        self, text_store: VectorStore, call: Any, field_name: str
    ) -> None:
        """The error names the invalid argument."""
        with pytest.raises(InvalidInputError) as error:
            await call(text_store)
        assert error.value.field == field_name
