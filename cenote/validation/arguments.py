"""Check the arguments of store operations and the values of settings."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard, get_args

from cenote.errors import ConfigurationError, InvalidInputError
from cenote.types import ColumnType, Metric
from cenote.validation.json import longer_than, unstorable

MAX_KEY_BYTES = 1024
"""Maximum UTF-8 bytes of a namespace, id or document id: a btree entry (2,704 bytes) holds two."""

MAX_DIMENSIONS = 16_000
"""Maximum number of dimensions that pgvector stores. It can index fewer: see `cenote.config`."""

MAX_EF_SEARCH = 1000
"""Maximum of pgvector's setting ``hnsw.ef_search``."""

_LARGEST = sys.float_info.max

_SCORES: dict[Metric, tuple[float, float, str]] = {
    "cosine": (-1.0, 1.0, "a number from -1 to 1"),
    "inner_product": (-_LARGEST, _LARGEST, "a finite number with metric='inner_product'"),
    "l2": (-_LARGEST, 0.0, "a number of 0 or less with metric='l2'"),
}
"""Least and greatest score of each metric, and their range in words."""

MAX_RERANK = 10_000
"""Maximum number of candidates that an index of kind ``"bit"`` finds."""

MAX_LIMIT = 10_000
"""Maximum number of results of a search, and of chunks of a page.

A caller who passes on a number from a request cannot exhaust the process with it: 10,000 results
with contents of 500 characters take 20 MB.
"""

MAX_QUERY_VECTORS = 1_000
"""Maximum number of vectors of `search_many`."""

_MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1

_shortened = reprlib.Repr()
_shortened.maxstring = 120


def safe_repr(value: Any) -> str:
    """Return a short `repr` of any value for a message, without failing.

    Only texts, numbers, booleans and None are quoted; of other values, the type is named.
    """
    if isinstance(value, str) or value is None or isinstance(value, bool | float):
        return _shortened.repr(value)
    if isinstance(value, int) and -(10**20) < value < 10**20:
        return _shortened.repr(value)
    return f"an object of type {type(value).__name__}"


# -- numbers ---------------------------------------------------------------------------------------


def is_integer(value: Any, least: int | None = None, most: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an `int` in a range. Booleans and numpy's integers are not."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def is_number(
    value: Any, least: float | None = None, most: float | None = None
) -> TypeGuard[int | float]:
    """Return whether a value is an `int` or a `float` in a range. Booleans are not."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def _integer_error(value: Any, least: int, most: int | None, hint: str | None) -> str | None:
    """Return what is wrong with a value that is not an integer in a range; None if it is one."""
    if is_integer(value, least, most):
        return None
    accepted = f"of {least:,} or more" if most is None else f"from {least:,} to {most:,}"
    if hint is not None:
        accepted += f" ({hint})"
    return f"must be an integer {accepted}, not {safe_repr(value)}"


def check_integer_argument(value: Any, *, field: str, least: int, most: int | None = None) -> None:
    """Check that an argument of a call is an integer in a range.

    Raises:
        InvalidInputError: The value is not an integer in the range.
    """
    if error := _integer_error(value, least, most, None):
        raise InvalidInputError(f"{field} {error}", field=field)


def check_integer_setting(
    value: Any, *, setting: str, least: int, most: int | None = None, hint: str | None = None
) -> None:
    """Check that a setting is an integer in a range.

    Args:
        value: The setting's value.
        setting: Name of the setting.
        least: Smallest accepted value.
        most: Largest accepted value; unlimited if None.
        hint: Advice for the error message.

    Raises:
        ConfigurationError: The value is not an integer in the range.
    """
    if error := _integer_error(value, least, most, hint):
        raise ConfigurationError(f"{setting} {error}", setting=setting)


# -- arguments -------------------------------------------------------------------------------------


def check_namespace(namespace: str) -> None:
    """Check that a namespace is a storable text, not empty and not too long."""
    check_key(namespace, field="namespace")
    if not namespace:
        raise InvalidInputError("namespace is empty; name the tenant", field="namespace")


def check_limit(limit: int) -> None:
    """Check that a limit is an integer from 1 to `MAX_LIMIT`."""
    check_integer_argument(limit, field="limit", least=1, most=MAX_LIMIT)


def check_ef_search(ef_search: int | None) -> None:
    """Check that the ``ef_search`` of a call is None or in pgvector's range."""
    if ef_search is not None:
        check_integer_argument(ef_search, field="ef_search", least=1, most=MAX_EF_SEARCH)


def check_rerank(rerank: int | None) -> None:
    """Check that a number of candidates is None or an integer in its range."""
    if rerank is not None:
        check_integer_argument(rerank, field="rerank", least=1, most=MAX_RERANK)


def as_list(values: Any, rule: str, *, field: str, but_not: tuple[type, ...] = (str,)) -> list[Any]:
    """Return the elements of an iterable as a list.

    Args:
        values: List or other iterable.
        rule: What the argument must be, for the message.
        field: Name of the argument.
        but_not: Iterable types that are surely a mistake.

    Raises:
        InvalidInputError: `values` is not iterable, or its type is in `but_not`.
    """
    if not isinstance(values, but_not) and is_iterable(values):
        return list(values)
    raise InvalidInputError(f"{rule}, not {type(values).__name__}", field=field)


def is_iterable(value: Any) -> bool:
    """Return whether a value can be iterated over. A numpy array without dimensions cannot."""
    if not isinstance(value, Iterable):
        return False
    try:
        iter(value)
    except TypeError:
        return False
    return True


def check_ids(chunk_ids: Sequence[str]) -> list[str]:
    """Check ids, and return them sorted and without duplicates."""
    return sorted(check_ids_in_order(chunk_ids))


def check_ids_in_order(chunk_ids: Sequence[str]) -> list[str]:
    """Return the ids like `check_ids`, but in the given order."""
    ids = as_list(chunk_ids, "chunk_ids must be a list of ids", field="chunk_ids")
    for chunk_id in ids:
        check_key(chunk_id, field="chunk_ids")
    return list(dict.fromkeys(ids))


def check_min_score(min_score: float | None, metric: Metric) -> None:
    """Check that a minimum score is None or a number in the range of the metric's scores."""
    least, most, rule = _SCORES[metric]
    if min_score is not None and not is_number(min_score, least, most):
        raise InvalidInputError(
            f"min_score must be {rule}, not {safe_repr(min_score)}", field="min_score"
        )


def check_per_document(per_document: int | None) -> None:
    """Check that a maximum number of chunks per document is None or an integer of 1 or more."""
    if per_document is not None:
        check_integer_argument(per_document, field="per_document", least=1, most=_MAX_INT32)


def check_diversity(diversity: float, candidates: int | None, limit: int) -> int:
    """Check the arguments of a diverse search.

    Returns:
        The number of candidates, by default four times the limit, but at most `MAX_LIMIT`.
    """
    check_limit(limit)
    if not is_number(diversity, 0, 1):
        raise InvalidInputError(
            f"diversity must be a number from 0 to 1, not {safe_repr(diversity)}", field="diversity"
        )
    if candidates is None:
        return min(4 * limit, MAX_LIMIT)
    if not is_integer(candidates, limit, MAX_LIMIT):
        raise InvalidInputError(
            f"candidates must be an integer from the limit to {MAX_LIMIT:,}, not "
            f"{safe_repr(candidates)}",
            field="candidates",
        )
    return candidates


def check_fusion(vector_weight: float, text_weight: float, depth: int) -> None:
    """Check the arguments of a hybrid search.

    Weights are 0 or from 1e-9 to 1e9, and not both 0. The depth is an integer from 1 to
    `MAX_LIMIT`.
    """
    weights = {"vector_weight": vector_weight, "text_weight": text_weight}
    for name, weight in weights.items():
        if not (is_number(weight, 0, 0) or is_number(weight, 1e-9, 1e9)):
            raise InvalidInputError(
                f"{name} must be 0, or a number from 1e-9 to 1e9, not {safe_repr(weight)}",
                field=name,
            )
    if not vector_weight and not text_weight:
        raise InvalidInputError(
            "vector_weight and text_weight are both 0; set at least one of them above 0",
            field="text_weight",
        )
    check_integer_argument(depth, field="depth", least=1, most=MAX_LIMIT)


def check_boolean(value: bool, *, field: str) -> None:
    """Check that an argument is True or False. An array, for example, has no truth value."""
    if not isinstance(value, bool):
        raise InvalidInputError(
            f"{field} must be True or False, not {safe_repr(value)}", field=field
        )


def check_embedding_model(embedding_model: str | None) -> None:
    """Check that the name of a store's embedding model is None or a storable text."""
    if embedding_model is None:
        return
    if not isinstance(embedding_model, str) or unstorable(embedding_model):
        raise ConfigurationError(
            "embedding_model must be the name of a model, as text that Postgres can store, not "
            f"{safe_repr(embedding_model)}",
            setting="embedding_model",
        )


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    """Check that weights of rankings are None, or `count` numbers from 0 to 1e9 and not all 0."""
    if weights is None:
        return
    if not isinstance(weights, Sequence) or len(weights) != count:
        raise ConfigurationError(
            f"weights must be a list of {count}, one for each retriever", setting="weights"
        )
    if not all(is_number(weight, 0, 1e9) for weight in weights) or not any(weights):
        raise ConfigurationError(
            "weights must be numbers from 0 to 1e9, at least one of them above 0",
            setting="weights",
        )


_LONGEST_TIMEOUT = 1e9
"""Maximum of a timeout in seconds; beyond it, the clock of an event loop is too coarse."""


def check_operation_timeout(seconds: float | None) -> None:
    """Check that a time limit is None or a number of seconds above 0."""
    if seconds is not None and not (is_number(seconds, 0, _LONGEST_TIMEOUT) and seconds):
        raise ConfigurationError(
            "operation_timeout must be a number of seconds above 0 and at most 1e9, not "
            f"{safe_repr(seconds)}",
            setting="operation_timeout",
        )


def check_full_text(languages: Sequence[str]) -> None:
    """Check that a store has full text, before a search by words."""
    if not languages:
        raise ConfigurationError(
            "this store has no full text; create it with the text_search of its table, such as "
            "text_search='english'",
            setting="text_search",
        )


def check_chunk_id(chunk_id: str) -> None:
    """Check that a chunk id can be stored."""
    check_key(chunk_id, field="chunk_id")


def check_document_id(document_id: str) -> None:
    """Check that a document id can be stored."""
    check_key(document_id, field="document_id")


def check_neighbours(before: int, after: int) -> None:
    """Check that numbers of neighbours are integers of 0 or more."""
    check_integer_argument(before, field="before", least=0, most=_MAX_INT32)
    check_integer_argument(after, field="after", least=0, most=_MAX_INT32)


def check_dimensions(dimensions: int | None) -> int:
    """Return a number of dimensions, if it is an integer that pgvector can store."""
    check_integer_setting(dimensions, setting="dimensions", least=1, most=MAX_DIMENSIONS)
    assert dimensions is not None
    return dimensions


def check_column_type(column_type: ColumnType) -> None:
    """Check that a column type is ``"vector"`` or ``"halfvec"``."""
    check_choice(column_type, ColumnType, setting="column_type")


def check_choice(value: Any, choices: Any, *, setting: str) -> None:
    """Check that a setting is one of the values of a Literal.

    Raises:
        ConfigurationError: It is another value.
    """
    allowed = get_args(choices)
    if not isinstance(value, str) or value not in allowed:
        *others, last = map(repr, allowed)
        raise ConfigurationError(
            f"{setting} must be {', '.join(others)} or {last}, not {safe_repr(value)}",
            setting=setting,
        )


# -- text ------------------------------------------------------------------------------------------


def check_key(value: str, *, field: str, chunk_id: str | None = None) -> None:
    check_text(value, field=field, chunk_id=chunk_id)
    if longer_than(value, MAX_KEY_BYTES):
        raise text_error(f"is longer than {MAX_KEY_BYTES:,} bytes of UTF-8", field, chunk_id)


def check_text(value: str, *, field: str, chunk_id: str | None = None) -> None:
    """Check that a value is text that Postgres can store."""
    if not isinstance(value, str):
        raise text_error(f"must be text, not {type(value).__name__}", field, chunk_id)
    if reason := unstorable(value):
        if field == "id":
            chunk_id = value
        raise text_error(reason, field, chunk_id)


def text_error(reason: str, field: str, chunk_id: str | None) -> InvalidInputError:
    subject = field if chunk_id is None else f"chunk {safe_repr(chunk_id)}: {field}"
    return InvalidInputError(f"{subject} {reason}", field=field, chunk_id=chunk_id)
