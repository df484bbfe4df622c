"""Filters and the chunks that they match: cases for the contract suite."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from cenote.filters.language import field, meta

FILTERED: dict[str, dict[str, Any]] = {
    "a": {"year": 2020, "lang": "es", "tags": ["x", "y"], "author": {"name": "Ana", "age": 3}},
    "b": {"year": 2021.5, "lang": "EN", "tags": [], "author": {"name": ["Ana"]}},
    "c": {"year": "2020", "lang": None, "tags": None},
    "d": {"year": True, "tags": "x", "author": [{"name": "Ana"}]},
    "e": {},
    "f": {"year": None, "lang": "españÖl_1", "tags": [1, [2], {"k": 1, "l": 2}, None, "x"]},
}
"""Metadata of the chunks that `FILTERS` are applied to, by chunk id."""

_OTHERS = [f"other {number}" for number in range(50)]
"""Values that no chunk has. They make a list long, so that it becomes one predicate."""

LONG_LISTS: list[tuple[Any, str]] = [
    (meta("lang").in_(["es", "EN", *_OTHERS]), "ab"),
    (meta("lang").not_in(["es", "EN", *_OTHERS]), "cdef"),
    (meta("year").in_([2020, *_OTHERS]), "a"),
    (meta("year").in_([2020.0, 2021.5, *_OTHERS]), "ab"),
    (meta("year").in_([*range(2000, 2030)]), "a"),
    (meta("year").in_([*map(float, range(2000, 2030))]), "a"),
    (meta("year").in_([1, 0, *_OTHERS]), ""),
    (meta("year").in_([True, *_OTHERS]), "d"),
    (meta("year").in_([None, *_OTHERS]), "f"),
    (meta("year").not_in([None, *_OTHERS]), "abcde"),
    (meta("year").in_([*[2020] * 30, *[2020.0] * 30]), "a"),
    (meta("year").in_([[2020], {"year": 2020}, *_OTHERS]), ""),
    (meta("year").in_(["2020", "true", "null", *_OTHERS]), "c"),
    (meta("missing").in_(_OTHERS), ""),
    (meta("missing").not_in(_OTHERS), "abcdef"),
    (~~meta("missing").not_in([None, *_OTHERS]), "abcdef"),
    (meta("tags").in_([["x", "y"], *_OTHERS]), "a"),
    (meta("tags").in_([["y", "x"], ["x"], *_OTHERS]), ""),
    (meta("tags").in_([[], {}, *_OTHERS]), "b"),
    (meta("tags").in_(["x", *_OTHERS]), "d"),
    (meta("tags").in_([[1.0, [2], {"l": 2, "k": 1}, None, "x"], *_OTHERS]), "f"),
    (meta("author").in_([{"age": 3.0, "name": "Ana"}, {"name": "Ana"}, *_OTHERS]), "a"),
    (meta("author").in_([[{"name": "Ana"}], *_OTHERS]), "d"),
    (meta("author", "name").in_(["Ana", *_OTHERS]), "a"),
    (meta("author", "name").in_([["Ana"], None, *_OTHERS]), "b"),
    (meta("author", "name").not_in(["Ana", *_OTHERS]), "bcdef"),
    (meta("author", "name", "deeper").in_([None, *_OTHERS]), ""),
    (meta("tags").any_of(["x", *_OTHERS]), "af"),
    (meta("tags").any_of([1.0, *_OTHERS]), "f"),
    (meta("tags").any_of([True, [1], {"k": 1}, *_OTHERS]), ""),
    (meta("tags").any_of([None, *_OTHERS]), "f"),
    (meta("tags").any_of([[2.0], *_OTHERS]), "f"),
    (~meta("tags").any_of(["x", *_OTHERS]), "bcde"),
    (meta("author", "name").any_of(["Ana", *_OTHERS]), "b"),
    (meta("missing").any_of(_OTHERS), ""),
    (meta("tags").all_of(["x"] * 30), "af"),
    (meta("tags").all_of([*["x"] * 30, "y"]), "a"),
    (meta("tags").all_of(["x", *_OTHERS]), ""),
    (meta("tags").all_of([*[1, 1.0] * 20, [2], {"l": 2, "k": 1}, None, "x"]), "f"),
    (meta("tags").all_of([*[True, 1] * 20]), ""),
    (meta("tags").all_of([{"k": 1}] * 30), ""),
    (meta("tags").all_of([[2]] * 30), "f"),
    (meta("tags").all_of([None] * 30), "f"),
    (~meta("tags").all_of(["x"] * 30), "bcde"),
    (meta("author", "name").all_of(["Ana"] * 30), "b"),
    (meta("missing").all_of([None] * 30), ""),
    ({"lang": {"$in": ["es", None, *_OTHERS]}}, "ac"),
    ({"lang": {"$nin": ["es", None, *_OTHERS]}}, "bdef"),
    ({"tags": {"$any": ["y", *_OTHERS]}}, "a"),
    ({"tags": {"$all": ["x"] * 30}, "year": None}, "f"),
    ({"tags": {"$not": {"$all": ["x"] * 30}}}, "bcde"),
    ((meta("lang").in_(["es", *_OTHERS])) | meta("tags").any_of([1, *_OTHERS]), "af"),
    (meta("lang").in_(["es", *_OTHERS]) & ~meta("tags").all_of(["y"] * 30), ""),
    (field("position").in_([0, 3, *range(100, 150)]), "ad"),
    (field("position").not_in([0, 3, *range(100, 150)]), "bcef"),
    (field("document_id").in_(["doc%b", *_OTHERS]), "b"),
    (field("content").in_(["Under%", *_OTHERS]), ""),
    (field("id").not_in(["a", *_OTHERS]), "bcdef"),
    (field("embedding_model").in_([None, *_OTHERS]), ""),
    (field("embedding_model").not_in(["model", *_OTHERS]), ""),
    (field("created_at").in_([datetime(2020, 1, day, tzinfo=UTC) for day in range(1, 31)]), ""),
]
"""Filters with lists of more than 20 values, each with the keys in `FILTERED` that it matches."""

FILTERS: list[tuple[Any, str]] = [
    *LONG_LISTS,
    (meta("year") == 2020, "a"),
    (meta("year") == 2020.0, "a"),
    (meta("year") != 2020, "bcdef"),
    (meta("year") == None, "f"),  # noqa: E711
    (meta("year").is_null(), "f"),
    (meta("year").exists(), "abcdf"),
    (meta("year") >= 2020, "ab"),
    (meta("year") > 2020, "b"),
    (meta("year") < 2021.5, "a"),
    (meta("year") <= 2021.5, "ab"),
    (meta("year") >= "2", "c"),
    (meta("year") > 10**30, ""),
    (meta("year") < 1e300, "ab"),
    (meta("year").between(2020, 2021), "a"),
    (meta("year").in_([2020, "2020", None, True]), "acdf"),
    (meta("year").in_([]), ""),
    (meta("year").in_([*range(3000)]), "a"),
    (meta("tags").in_([[], *range(30), ["x", "y"]]), "ab"),
    (meta("year").not_in([2020]), "bcdef"),
    (meta("lang") >= "a", "af"),
    (meta("lang") > "EN", "af"),
    (meta("lang").like("e%"), "af"),
    (meta("lang").like("E_"), "b"),
    (meta("lang").like("%\\_1"), "f"),
    (meta("lang").like("%ñ_l%"), "f"),
    (meta("lang").like("es"), "a"),
    (meta("lang").like(""), ""),
    (meta("lang").ilike("e%"), "abf"),
    (meta("lang").ilike("ESPAñÖL\\_%"), "f"),
    (meta("lang").ilike("espaÑöl%"), ""),
    (meta("lang").startswith("e"), "af"),
    (meta("lang").startswith("%"), ""),
    (meta("tags").contains("x"), "af"),
    (meta("tags").contains(1.0), "f"),
    (meta("tags").contains(True), ""),
    (meta("tags").contains([2]), "f"),
    (meta("tags").contains({"k": 1}), ""),
    (meta("tags").contains({"l": 2, "k": 1}), "f"),
    (meta("tags").contains(None), "f"),
    (meta("tags").any_of(["y", 1]), "af"),
    (meta("tags").any_of([]), ""),
    (meta("tags").any_of(["y", *range(1, 30)]), "af"),
    (meta("tags").any_of([[2], {"k": 1}, True, *range(2, 30)]), "f"),
    (meta("tags").any_of([{"k": 1}, [1], True, *range(2, 30)]), ""),
    (~meta("tags").any_of([None, *range(2, 30)]), "abcde"),
    (meta("author").any_of([{"name": "Ana"}, *range(30)]), "d"),
    (meta("tags").all_of(["y", "x"]), "a"),
    (meta("tags") == [], "b"),
    (meta("author", "name") == "Ana", "a"),
    (meta("author", "name") == ["Ana"], "b"),
    (meta("author", "name").contains("Ana"), "b"),
    (meta("author", "name").exists(), "ab"),
    (meta("author", "name").startswith("A"), "a"),
    (meta("author", "age") > 2, "a"),
    (meta("author") == {"age": 3, "name": "Ana"}, "a"),
    (meta("'; DROP TABLE cenote_chunks; --").exists(), ""),
    ((meta("year") == 2020) & (meta("lang") == "es"), "a"),
    ((meta("year") == 2020) | meta("lang").is_null() | (meta("tags") == "x"), "acd"),
    (~(meta("year") >= 2020) & meta("lang").exists(), "cf"),
    (field("position") >= 4, "ef"),
    (field("position").in_([0, 3]), "ad"),
    (field("document_id") == "doc%b", "b"),
    (field("document_id").like("%\\%_"), "abcdef"),
    (field("id").between("b", "d"), "bcd"),
    (field("content").ilike("UNDER%"), "abcdf"),
    (field("content") < "z", "abcdf"),
    (field("embedding_model") != "model", ""),
    (field("created_at") > datetime(2020, 1, 1, tzinfo=UTC), "abcdef"),
    (field("created_at").is_null(), ""),
    ({"year": {"$gte": 2020, "$lt": 2021}}, "a"),
    ({"year": {"$ne": 2020}, "lang": "es"}, ""),
    ({"year": {"$in": [2020, "2020"]}}, "ac"),
    ({"year": {"$nin": [2020, "2020"]}}, "bdef"),
    ({"year": {"$between": [2020, 2022]}}, "ab"),
    ({"year": {"$exists": False}}, "e"),
    ({"year": {"$eq": {"$gte": 1}}}, ""),
    ({"year": {"$not": {"$gt": 2020}}}, "acdef"),
    ({"tags": {"$contains": "x"}}, "af"),
    ({"tags": {"$any": ["y"]}, "lang": {"$ilike": "ES"}}, "a"),
    ({"tags": {"$all": ["x", 1]}}, "f"),
    ({"lang": {"$like": "E%"}}, "b"),
    ({"$or": [{"year": 2020}, {"lang": None}, field("position") == 5]}, "acf"),
    ({"$and": [{"year": 2020}, {"$not": {"lang": "es"}}]}, ""),
    ({"$and": []}, "abcdef"),
    ({"$or": []}, ""),
]
"""Filters, each with the keys in `FILTERED` that it matches."""

BAD_FILTERS: list[Callable[[], Any]] = [
    lambda: {"$nor": []},
    lambda: {"$and": {"a": 1}},
    lambda: {"$not": 1},
    lambda: {"a": {"$regex": "x"}},
    lambda: {"a": {"$gt": 1, "b": 2}},
    lambda: {"a": {"$gt": [1]}},
    lambda: {"a": {"$gt": True}},
    lambda: {"a": {"$in": "abc"}},
    lambda: {"a": np.array(1.0)},  # it has no length
    lambda: {"a": {"$between": [1]}},
    lambda: {"a": {"$exists": 1}},
    lambda: {"a": {"$all": []}},
    lambda: {"a": {"$not": 1}},
    lambda: {"a": {"$like": "x\\"}},
    lambda: {"a": {"$eq": float("nan")}},
    lambda: {"a": meta("b") == 1},
    lambda: {"a\x00": {"$gt": 1}},
    meta,
    lambda: meta("a\x00").exists(),
    lambda: meta(7) == 1,  # type: ignore[arg-type]
    lambda: meta("a") > None,
    lambda: meta("a").like(7),  # type: ignore[arg-type]
    lambda: meta("a") == {1},
    lambda: meta("a").contains("\x00"),
    lambda: field("position") == "1",
    lambda: field("position") == True,  # noqa: E712
    lambda: field("created_at") > datetime(2020, 1, 1),
    lambda: field("document_id") > 1,
    lambda: field("document_id") == "\x00",
    lambda: {"a": 1} | {"$and": [{"b": n} for n in range(1001)]},
    lambda: _nested(51),
    lambda: {"a": _nested_in_key(3000)},
    lambda: field("position") == 2**70,
    lambda: field("position").in_([2**70]),
    lambda: meta("a") > datetime(2020, 1, 1, tzinfo=UTC),
    lambda: meta("a").in_([datetime(2020, 1, 1, tzinfo=UTC)] * 30),
    lambda: {"a": date(2020, 1, 1)},
    lambda: {"a": {"$any": [[date(2020, 1, 1)]]}},
    lambda: {"a": {"$all": ["x"] * 30 + ["\x00"]}},
]
"""Functions that build invalid filters, or raise while building one."""


def _nested_in_key(depth: int) -> dict[str, Any]:
    operators: dict[str, Any] = {"$gt": 1}
    for _ in range(depth):
        operators = {"$not": operators}
    return operators


def _nested(depth: int) -> dict[str, Any]:
    filter: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        filter = {"$not": filter}
    return filter
