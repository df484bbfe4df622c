"""Strategies for filters with every kind of operand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from support.fuzzing.values import (
    MARKER,
    Recipe,
    Strategy,
    anything,
    good_texts,
    good_values,
    lazy,
    odd_contents,
    odd_metadata,
    resolve,
)

from cenote import Filter, field, meta


@dataclass(frozen=True)
class Expression(Recipe):
    """Recipe for a filter expression."""

    operand: str
    path: tuple[Any, ...]
    operator: str
    values: tuple[Any, ...]
    negated: int = 0

    def make(self) -> Filter:
        make_operand: Any = meta if self.operand == "meta" else field
        operand = make_operand(*map(resolve, self.path))
        expression: Filter = getattr(operand, self.operator)(*map(resolve, self.values))
        for _ in range(self.negated):
            expression = ~expression
        return expression


_value_lists = st.lists(good_values, max_size=3)
_good_operators = st.one_of(
    st.tuples(st.sampled_from(["__eq__", "__ne__", "contains"]), good_values),
    st.tuples(st.sampled_from(["__lt__", "__ge__"]), st.integers() | good_texts),
    st.tuples(st.sampled_from(["in_", "not_in", "any_of"]), _value_lists),
    st.tuples(
        st.sampled_from(["in_", "not_in", "any_of"]),
        _value_lists.map(lambda values: [*values, *range(30)]),
    ),
    st.tuples(st.just("all_of"), good_values.map(lambda value: [value] * 25)),
    st.tuples(st.sampled_from(["like", "startswith"]), good_texts.map(lambda text: text + "%")),
    st.tuples(st.sampled_from(["exists", "is_null"])),
)
_odd_operands = anything | good_values | odd_contents | odd_metadata
_odd_operators = st.one_of(
    st.tuples(st.sampled_from(["__eq__", "__lt__", "contains", "like", "ilike"]), _odd_operands),
    st.tuples(st.sampled_from(["in_", "any_of", "all_of", "startswith"]), _odd_operands),
    st.tuples(st.just("in_"), st.lists(_odd_operands, max_size=3)),
    st.tuples(st.just("between"), _odd_operands, _odd_operands),
    st.tuples(
        st.sampled_from(["like", "ilike"]),
        lazy(
            wildcards=lambda: "%" * 2**16,
            places=lambda: "_" * 2**16,
            pieces=lambda: "a%" * 2**12,
            words=lambda: (MARKER + "%") * 2**16,
        )
        | st.sampled_from(["\\", MARKER + "\\", "(?P<a>["]),
    ),
)
_keys_of_metadata = st.sampled_from(["a", "b", "é", "'; DROP TABLE x; --", "$and", ""])
_good_paths = st.lists(_keys_of_metadata, min_size=1, max_size=3).map(tuple)
_odd_paths = st.lists(anything, max_size=2).map(tuple) | st.sampled_from(
    [("a",) * depth for depth in (40, 50, 51, 200)]
)
_deep_paths = st.sampled_from([("a",), ("a",) * 2, ("a",) * 20, ("a",) * 50])
_columns = st.sampled_from(["id", "document_id", "content", "position", "embedding_model"])


def _expressions(operand: str, paths: Strategy, operators: Strategy, negated: Strategy) -> Strategy:
    return st.builds(
        lambda path, operator, times: Expression(operand, path, operator[0], operator[1:], times),
        *(paths, operators, negated),
    )


_text_operators = st.tuples(st.sampled_from(["__eq__", "__lt__", "startswith"]), good_texts)
good_expressions = _expressions(
    "meta", _good_paths, _good_operators, st.integers(0, 3)
) | _expressions(
    "field",
    st.sampled_from([("id",), ("document_id",), ("content",), ("embedding_model",)]),
    _text_operators,
    st.integers(0, 3),
)
odd_expressions = st.one_of(
    _expressions("meta", _good_paths, _odd_operators, st.just(0)),
    _expressions("meta", _odd_paths, _good_operators, st.just(0)),
    _expressions("meta", _deep_paths, _good_operators, st.sampled_from([0, 30, 49, 50, 10_000])),
    _expressions(
        "field",
        st.tuples(_columns),
        _odd_operators.filter(lambda drawn: drawn[0] not in ("contains", "any_of", "all_of")),
        st.just(0),
    ),
    _expressions(
        "field",
        st.tuples(anything.filter(lambda name: not isinstance(name, str))),
        _text_operators,
        st.just(0),
    ),
)
_operators_by_name = st.sampled_from(
    [
        *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$between", "$exists"),
        *("$contains", "$any", "$all", "$like", "$not", "$x"),
    ]
)
good_dicts = st.dictionaries(_keys_of_metadata.filter(lambda key: key != "$and"), good_values)
odd_dicts = st.recursive(
    st.dictionaries(good_texts, st.dictionaries(_operators_by_name, _odd_operands, min_size=1))
    | st.dictionaries(st.sampled_from(["$and", "$or", "$not", 1, None, ("a",), "a"]), anything),
    lambda inner: (
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=3), min_size=1)
        | st.dictionaries(st.just("$not"), inner, min_size=1)
    ),
    max_leaves=4,
)


def _deep_filter(key: str, depth: int, *, in_list: bool) -> dict[str, Any]:
    nested: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        nested = {key: [nested] if in_list else nested}
    return nested


def _shared_filter(part: Any, depth: int) -> Any:
    """Return a filter of a few shared objects that count as a billion parts."""
    for _ in range(depth):
        if isinstance(part, dict):
            part = {"$and": [part, part]}
        else:
            part = (part | (meta("b") == 1)) & (part | (meta("b") == 2))
    return part


def _filter_of_itself() -> dict[str, Any]:
    filters: dict[str, Any] = {}
    filters["$and"] = [filters, filters]
    return filters


good_filters = st.none() | good_dicts | good_expressions
odd_filters = st.one_of(
    anything,
    odd_dicts,
    odd_expressions,
    lazy(
        ands_10_000_deep=lambda: _deep_filter("$and", 10_000, in_list=True),
        nots_10_000_deep=lambda: _deep_filter("$not", 10_000, in_list=False),
        nots_of_a_key=lambda: {"a": _deep_filter("$not", 10_000, in_list=False)},
        of_itself=_filter_of_itself,
        shared=lambda: _shared_filter({"a": 1}, 45),
        shared_expressions=lambda: _shared_filter(meta("a") == 1, 45),
        too_many=lambda: {"$or": [{"a": {"$gt": number}} for number in range(2000)]},
        many_values=lambda: {"a": {"$in": list(range(20_000))}},
    ),
)
