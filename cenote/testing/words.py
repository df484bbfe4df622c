"""What every store must do with searches by words."""

from __future__ import annotations

from typing import Any

import pytest

from cenote.errors import ConfigurationError, InvalidInputError
from cenote.filters import meta
from cenote.models import RetrievalResult
from cenote.ranking import RANK_CONSTANT
from cenote.stores.base import VectorStore
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
    """Of chunks, in order."""
    return [result.chunk.id for result in results]


class TextContract:
    """A part of `cenote.testing.VectorStoreContract`."""

    @pytest.fixture
    async def worded(self, make_store: MakeStore) -> Any:
        """A store of four dimensions with English full text, and a few chunks."""
        store = await make_store(4, text_search="english")
        chunks = [
            embedded(one, [1.0, place / 10, 0.0, 0.0], content=text, metadata={"n": place})
            for place, (one, text) in enumerate(TEXTS.items())
        ]
        await store.upsert(chunks, NAMESPACE)
        await store.upsert([embedded("theirs", content=TEXTS["cats"])], "other")
        return store

    async def test_any_word_by_its_stem(self, worded: VectorStore) -> None:
        """A chunk that has more of them comes first."""
        results = await worded.search_text("Which cat has a dog?", NAMESPACE)
        assert ids(results)[0] == "both"
        assert set(ids(results)) == {"both", "cats", "dogs"}
        assert {result.retriever for result in results} == {"text"}
        scores = [result.score for result in results]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] > 0
        assert results[0].chunk == (await worded.get(["both"], NAMESPACE))[0]
        assert ids(await worded.search_text("RUNNING", NAMESPACE)) == ["dogs"]
        assert ids(await worded.search_text("cat dog", NAMESPACE, 1)) == ["both"]
        assert ids(await worded.search_text("kitchens", "other")) == ["theirs"]

    @pytest.mark.parametrize("text", ["", " \n", "?!", "zebra", "'", "\\", "&|!:*<->()"])
    async def test_texts_that_say_nothing(self, worded: VectorStore, text: str) -> None:
        """Find nothing, and by vector what is near."""
        assert await worded.search_text(text, NAMESPACE) == []
        hybrid = await worded.search_hybrid(text, NEAR, NAMESPACE)
        assert ids(hybrid) == ["cats", "dogs", "both", "none"]

    @pytest.mark.parametrize("text", [*SQL_LOOKALIKES, "it's a\\b & (cats", "cat' | 'dog"])
    async def test_texts_are_no_queries(self, worded: VectorStore, text: str) -> None:
        """Whatever they hold."""
        await worded.search_text(text, NAMESPACE)
        await worded.search_hybrid(text, NEAR, NAMESPACE)
        assert await worded.count(NAMESPACE) == 4

    async def test_words_under_a_filter(self, worded: VectorStore) -> None:
        """Before the limit is counted."""
        found = await worded.search_text("cat dog", NAMESPACE, 1, meta("n") < 1)
        assert ids(found) == ["cats"]
        assert await worded.search_text("cat", NAMESPACE, filter={"n": 3}) == []
        both = await worded.search_hybrid("cat", NEAR, NAMESPACE, filter={"n": {"$gte": 2}})
        assert ids(both) == ["both", "none"]

    async def test_a_language_that_changes(self, make_store: MakeStore) -> None:
        """Changes the words."""
        store = await make_store(4, text_search="spanish, english")
        await store.upsert([embedded("a", content="running")], NAMESPACE)
        assert await store.search_text("runs", NAMESPACE) == []
        await store.update_metadata({"a": {"language": "english"}}, NAMESPACE)
        assert ids(await store.search_text("runs", NAMESPACE)) == ["a"]

    async def test_words_that_change(self, worded: VectorStore) -> None:
        """Are found as they are now."""
        await worded.upsert([embedded("none", content="Cats in submarines")], NAMESPACE)
        assert set(ids(await worded.search_text("cat", NAMESPACE))) == {"cats", "both", "none"}
        await worded.delete(["cats"], NAMESPACE)
        assert set(ids(await worded.search_text("cat", NAMESPACE))) == {"both", "none"}
        await worded.update_metadata({"none": {"n": 9}}, NAMESPACE)
        (found,) = await worded.search_text("cat", NAMESPACE, filter={"n": 9})
        assert found.chunk.metadata == {"n": 9}
        await worded.delete_namespace(NAMESPACE)
        assert await worded.search_text("cat", NAMESPACE) == []

    async def test_both_rankings_fused(self, worded: VectorStore) -> None:
        """By places: the nearest by vector are cats, dogs, both, none."""
        (first_by_words, *_) = ids(await worded.search_text("gardens", NAMESPACE, 1))
        results = await worded.search_hybrid("gardens", NEAR, NAMESPACE)
        assert {result.retriever for result in results} == {"hybrid"}
        scores = {result.chunk.id: result.score for result in results}
        assert set(scores) == set(TEXTS)
        by_vector = {one: 1 / (RANK_CONSTANT + n) for n, one in enumerate(TEXTS, 1)}
        by_words: dict[str, float] = {"dogs": 1 / (RANK_CONSTANT + 2)}
        by_words["both"] = by_words["dogs"]
        by_words[first_by_words] = 1 / (RANK_CONSTANT + 1)
        for one, score in scores.items():
            assert score == pytest.approx(by_vector[one] + by_words.get(one, 0.0), abs=1e-12)
        assert ids(results) == sorted(scores, key=lambda one: (-scores[one], one))

    async def test_weights_and_depth(self, worded: VectorStore) -> None:
        """One ranking may count for more, and only so many of each are fused."""
        found = await worded.search_hybrid(
            "submarine", NEAR, NAMESPACE, 1, vector_weight=0.0, depth=2
        )
        assert ids(found) == ["none"]
        vector_only = await worded.search_hybrid(
            "submarine", NEAR, NAMESPACE, 2, text_weight=0.001, depth=2
        )
        assert ids(vector_only) == ["cats", "dogs"]
        shallow = await worded.search_hybrid("submarine", NEAR, NAMESPACE, 1, depth=1)
        assert ids(shallow) == ["cats"]  # a tie of two first places
        assert shallow[0].score == pytest.approx(1 / (RANK_CONSTANT + 1))
        all_of_them = await worded.search_hybrid("submarine", NEAR, NAMESPACE, 9, depth=1)
        assert len(all_of_them) == 4
        for weights, expected in (
            ({"vector_weight": 0}, ["none"]),
            ({"text_weight": 0}, ["cats", "dogs", "both", "none"]),
        ):
            options: Any = weights
            only = await worded.search_hybrid("submarine", NEAR, NAMESPACE, **options)
            assert ids(only) == expected
        zero = await worded.search_hybrid("submarine", [0.0] * 4, NAMESPACE)
        assert ids(zero) == ["none"]

    async def test_equal_words_come_by_id(self, worded: VectorStore) -> None:
        """In code-point order."""
        chunks = [embedded(one, FAR, content="equal words") for one in "bZa10é"]
        await worded.upsert(chunks, "ties")
        assert ids(await worded.search_text("equal", "ties")) == sorted("bZa10é")
        assert ids(await worded.search_hybrid("equal", FAR, "ties")) == sorted("bZa10é")

    async def test_languages_of_chunks(self, make_store: MakeStore) -> None:
        """Each by its own stems, the first language where the metadata name none of the others."""
        store = await make_store(4, text_search="spanish, english")
        texts: dict[str, tuple[str, dict[str, Any]]] = {
            "es": ("Los gatos caminaban por los jardines.", {}),
            "en": ("The cats were walking in gardens.", {"language": "english"}),
            "fr": ("Les jardines", {"language": "french"}),
            "En": ("She walks.", {"language": "English"}),
            "no": ("gatos", {"language": 5}),
        }
        await store.upsert(
            [embedded(one, content=text, metadata=said) for one, (text, said) in texts.items()],
            NAMESPACE,
        )
        assert ids(await store.search_text("caminar", NAMESPACE)) == ["es"]
        assert set(ids(await store.search_text("walked", NAMESPACE))) == {"en", "En"}
        assert set(ids(await store.search_text("gato", NAMESPACE))) == {"es", "no"}
        assert set(ids(await store.search_text("jardín garden", NAMESPACE))) >= {"en"}
        assert set(ids(await store.search_text("jardines", NAMESPACE))) == {"es", "fr"}

    async def test_words_of_other_scripts(self, make_store: MakeStore) -> None:
        """Letters with their marks, of which several languages make their vowels."""
        store = await make_store(4, text_search="simple")
        texts = {"a": "हिन्दी भाषा में", "b": "भारत देश", "c": "max_size", "d": "size limit"}
        await store.upsert([embedded(one, content=text) for one, text in texts.items()], NAMESPACE)
        assert ids(await store.search_text("भाषा", NAMESPACE)) == ["a"]
        assert set(ids(await store.search_text("SIZE", NAMESPACE))) == {"c", "d"}

    async def test_a_long_content(self, worded: VectorStore) -> None:
        """Is stored whole, and found by the words of its beginning."""
        long = "beginning " + "x" * 300_000 + " end " + " ".join(f"w{n}" for n in range(100_000))
        await worded.upsert([embedded("long", content=long)], "long")
        assert (await worded.get(["long"], "long"))[0].content == long
        assert ids(await worded.search_text("beginning", "long")) == ["long"]
        assert await worded.search_text("end", "long") == []

    async def test_without_full_text(self, make_store: MakeStore) -> None:
        """The error says what to set."""
        store = await make_store(4)
        with pytest.raises(ConfigurationError) as error:
            await store.search_text("cat", NAMESPACE)
        assert error.value.setting == "text_search"
        with pytest.raises(ConfigurationError):
            await store.search_hybrid("cat", NEAR, NAMESPACE)

    @pytest.mark.parametrize(
        ("call", "fault"),
        [
            (lambda store: store.search_text(None, "n"), "text"),
            (lambda store: store.search_text("a\x00", "n"), "text"),
            (lambda store: store.search_text("a", ""), "namespace"),
            (lambda store: store.search_text("a", "n", 0), "limit"),
            (lambda store: store.search_text("a", "n", 1, 7), "filter"),
            (lambda store: store.search_hybrid(7, NEAR, "n"), "text"),
            (lambda store: store.search_hybrid("a", [1.0], "n"), "query_vector"),
            (lambda store: store.search_hybrid("a", NEAR, "n", depth=0), "depth"),
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
    async def test_bad_questions_are_named(
        self, worded: VectorStore, call: Any, fault: str
    ) -> None:
        """Whatever the call."""
        with pytest.raises(InvalidInputError) as error:
            await call(worded)
        assert error.value.field == fault
