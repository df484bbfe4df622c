"""Shows the docstrings of the house as Markdown, for the reference pages of the manual.

The docstrings are Google's in their sections and reStructuredText's in what is inline. Here roles
and names in backquotes become links where the manual has such a name, literal blocks become fenced
ones, simple tables become Markdown's, and "a, b: ..." becomes a line for each argument.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|mod|func|attr|data|exc):`~?([^`]+)`")
_NAME = re.compile(r"(?<!'s )(?<![`\[\w])`([A-Za-z_][\w.]*)(\(\))?`(?!`)")
_LITERAL = re.compile(r"^(.*?):?::\n\n((?:[ ]{4}.*\n|\n)+)", re.MULTILINE)
_TABLE = re.compile(r"^(=+(?: +=+)+)\n((?:.*\n)+?)\1$(?:\n((?:.*\n)+?)\1$)?", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes|Raises):$")
_SEVERAL = re.compile(r"^    (\w+(?:, \w+)+): (.*)$")


class HouseStyle(griffe.Extension):
    """Mends each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, obj: griffe.Object) -> str:
    """A docstring of the house as Markdown."""
    text = _ROLE.sub(r"`\1`", text)
    text = _LITERAL.sub(_fenced, text + "\n").rstrip()
    text = _TABLE.sub(_table, text)
    text = "\n".join(_one_each(text.split("\n")))
    fences = text.split("```")
    fences[::2] = [_NAME.sub(lambda found: _link(found, obj), part) for part in fences[::2]]
    return "```".join(fences)


def _fenced(found: re.Match[str]) -> str:
    before = f"{found[1]}:\n\n" if found[1] else ""
    return f"{before}```python\n{textwrap.dedent(found[2]).strip()}\n```\n\n"


def _table(found: re.Match[str]) -> str:
    """A simple table; a line without a first cell goes on with the row before."""
    starts = [edge.start() for edge in re.finditer(r"=+", found[1])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows: list[list[str]] = []
    head, body = (found[2], found[3]) if found[3] else ("", found[2])
    for line in body.splitlines():
        cells = [line[start:end].strip() for start, end in spans]
        if cells[0] and not (rows and rows[-1][0].endswith(",")):
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, both)) for both in zip(rows[-1], cells, strict=True)]
    first = [head[start:end].strip() for start, end in spans]
    lines = [first, ["---"] * len(spans), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _one_each(lines: list[str]) -> list[str]:
    """Several names before one colon, as a line each."""
    result: list[str] = []
    section = ""
    for number, line in enumerate(lines):
        if found := _SECTION.match(line):
            section = found[1]
        elif line and not line.startswith(" "):
            section = ""
        if section and (several := _SEVERAL.match(line)):
            rest = []
            for later in lines[number + 1 :]:
                if not later.startswith("     "):
                    break
                rest.append(later)
            names = several[1].split(", ")
            for name in names[:-1]:
                result += [f"    {name}: {several[2]}", *rest]
            result.append(f"    {names[-1]}: {several[2]}")
        else:
            result.append(line)
    return result


def _link(found: re.Match[str], obj: griffe.Object) -> str:
    """A name as a link, if the manual has such an object, and as code otherwise."""
    name, brackets = found[1], found[2] or ""
    code = f"<code>{name}{brackets}</code>"
    for identifier in _candidates(name, obj):
        return f'<autoref optional identifier="{identifier}">{code}</autoref>'
    return found[0]


def _candidates(name: str, obj: griffe.Object) -> list[str]:
    """The full names that a name in a docstring may stand for, where there is such an object."""
    scopes = [obj, *_parents(obj)]
    package = scopes[-1]
    found = []
    for prefix in [*(scope.path for scope in scopes), "cenote.stores"]:
        for path in (f"{prefix}.{name}", name):
            if not path.startswith("cenote."):
                continue
            try:
                target = package[path.removeprefix("cenote.")]
                found.append(target.canonical_path)
            except (KeyError, griffe.AliasResolutionError):
                continue
    return found


def _parents(obj: griffe.Object) -> list[griffe.Object]:
    parents = []
    parent = obj.parent
    while parent is not None:
        parents.append(parent)
        parent = parent.parent
    return parents
