"""The demo examples/stdlib_search answers well."""

from __future__ import annotations

from pathlib import Path

from support.stdlib_questions import QUESTIONS

from cenote import EmbeddedChunk, InMemoryVectorStore
from examples.stdlib_search.corpus import PUBLIC, passages_by_namespace, read_standard_library
from examples.stdlib_search.embedding import DIMENSIONS, LatentSemanticAnalysis, WordSplitter

MUST_FIND = {
    "parse a date": "datetime.datetime.strptime",
    "read a csv file": "csv",
    "sort a list": "sorted",
    "measure elapsed time": "timeit.timeit",
    "split a string into words": "str.split",
}


async def test_the_first_three_results_answer_the_question(tmp_path: Path) -> None:
    """The first three results of the demo contain an answer to most questions.

    Fitting the model takes seconds, so all questions are asked in one test.
    """
    passages = passages_by_namespace(read_standard_library())[PUBLIC]
    embedder = LatentSemanticAnalysis(passages, tmp_path)
    store = InMemoryVectorStore(DIMENSIONS)
    chunks = [
        EmbeddedChunk(chunk=passage.chunk, embedding=vector, embedding_model=embedder.name)
        for passage, vector in zip(passages, embedder.embed(passages), strict=True)
    ]
    await store.upsert(chunks, PUBLIC)
    found = {}
    for question in QUESTIONS:
        results = await store.search(embedder.embed_question(question), PUBLIC, limit=3)
        found[question] = {result.chunk.document_id for result in results}
    assert {
        question: found[question]
        for question in MUST_FIND
        if MUST_FIND[question] not in found[question]
    } == {}
    unanswered = [question for question in QUESTIONS if not found[question] & QUESTIONS[question]]
    assert len(QUESTIONS) == 50
    assert len(unanswered) <= 18, unanswered


def test_compounds_count_as_their_parts() -> None:
    """A compound gives its own stem and those of its parts, if the parts occur in enough texts."""
    split = WordSplitter(["a date", "the time"] * 30 + ["read a line"] * 29)
    assert split("The datetime") == ["datetim", "dat", "tim"]
    assert split("readline") == ["readlin"]
