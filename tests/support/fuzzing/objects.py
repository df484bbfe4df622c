"""Strategies for the objects of any framework, and the description of an adapter under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support.fuzzing import values
from support.fuzzing.calls import Argument
from support.fuzzing.values import MARKER, Lazy, Recipe, Strategy, anything, resolve

from cenote import CenoteError


class NotBuiltError(Exception):
    """The framework rejects the input for its own object, before cenote sees it."""


@dataclass(frozen=True)
class Built(Recipe):
    """Object of a framework. Attributes in `later` are set after creation, without a check."""

    kind: Callable[..., Any]
    fields: dict[str, Any]
    later: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        fields, later = resolve(self.fields), resolve(self.later)
        try:
            built = self.kind(**fields)
            for name, value in later.items():
                setattr(built, name, value)
        except (CenoteError, NotBuiltError):
            raise
        except Exception as error:
            raise NotBuiltError from error
        return built


def built(
    kind: Callable[..., Any],
    parts: dict[str, Argument],
    *,
    settable: tuple[str, ...] = (),
) -> Argument:
    """Draw objects with no odd part, or with one, which may be set after creation."""
    good = {name: part.good for name, part in parts.items()}

    def odd(name: str) -> Strategy:
        if name not in settable:
            return fields(kind, {**good, name: parts[name].odd})
        return fields(kind, {**good, name: parts[name].odd}) | st.builds(
            Built, st.just(kind), st.fixed_dictionaries(good), dict_with(name, parts[name].odd)
        )

    return Argument(fields(kind, good), st.sampled_from([*parts]).flatmap(odd))


def dict_with(name: str, value: Strategy) -> Strategy:
    return st.fixed_dictionaries({name: value})


def fields(kind: Callable[..., Any], parts: dict[str, Strategy]) -> Strategy:
    return st.builds(Built, st.just(kind), st.fixed_dictionaries(parts))


def list_of(item: Argument) -> Argument:
    """Draw lists of objects, of which one may be odd, or no list at all."""
    odd = st.builds(
        lambda before, odd, after: [*before, odd, *after],
        *(st.lists(item.good, max_size=2), item.odd | anything, st.lists(item.good, max_size=1)),
    )
    return Argument(st.lists(item.good, max_size=3), odd | odd | odd | anything)


ids = Argument(
    st.sampled_from(["1", "2", "8", "9"]) | values.good_keys.filter(lambda key: type(key) is str),
    values.odd_keys,
)
metadata = Argument(values.good_metadata, values.odd_metadata)
vectors = Argument(values.good_vectors, values.odd_vectors)
contents = Argument(values.secret_texts.map(str.__str__), values.odd_contents)
odd_names = st.sampled_from([5, 0, True, "", "d", [MARKER], {MARKER: MARKER}, 10**5000, 0.5])
limits = Argument(values.good_limits, values.odd_limits)
id_lists = Argument(st.lists(ids.good, max_size=3), anything | st.lists(ids.odd, max_size=2))
search_by = Argument(st.just("cat") | values.secret_texts, values.odd_contents)


def metadata_naming(key: str) -> Argument:
    """Draw metadata in which a key names the document."""
    good = st.builds(
        lambda metadata, name: metadata if name is None else {**metadata, key: name},
        st.dictionaries(st.sampled_from(["a", "b"]), values.good_values, max_size=2),
        st.sampled_from([None, "d", 5, 0, True, ""]),
    )
    return Argument(
        good, values.odd_metadata | st.fixed_dictionaries({key: odd_names | values.odd_keys})
    )


def generator_of(item: Any) -> Lazy:
    """Return a generator of one object, new at each use."""
    return Lazy("a generator", lambda: (part for part in [item]))


ARRAY = Lazy("an array", lambda: np.array([1, 2]))

# -- adapters


@dataclass(frozen=True)
class Adapter:
    """Functions that create and call an adapter, its methods, and the framework's own errors."""

    make: Callable[[Any, str, dict[str, Any]], Any]
    call: Callable[..., Any]
    entries: dict[str, dict[str, Argument]]
    errors: tuple[type[Exception], ...] = ()


def method(adapter: Any, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(adapter, name)
    return method
