"""Convert cenote's docstrings to Markdown for the reference pages of the manual.

The docstrings have Google's sections and reStructuredText's inline markup. Roles and names in
backquotes become links if the manual documents such a name, literal blocks become fenced blocks,
simple tables become Markdown tables, and "a, b: ..." becomes one line for each argument.
"""

from __future__ import annotations

import logging
import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|mod|func|attr|data|exc):`~?([^`]+)`")
_NAME = re.compile(r"(?<!'s )(?<![`\[\w])`([A-Za-z_][\w.]*)(\(\))?`(?!`)")
_LITERAL = re.compile(r"^(.*?):?::\n\n((?:[ ]{4}.*\n|\n)+)", re.MULTILINE)
_TABLE = re.compile(
    r"^(=+(?: +=+)+)\n((?:.*\n)+?)\1$(?:\n((?:.*\n)+?)\1$)?", re.MULTILINE
)
_SECTION = re.compile(r"^(Args|Attributes|Raises):$")
_SEVERAL_NAMES = re.compile(r"^    (\w+(?:, \w+)+): (.*)$")


class _WarningsAreErrors(logging.Handler):
    """Ends the build at the first warning about a docstring, which Zensical only prints."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            raise ValueError(record.getMessage())


logging.getLogger("mkdocs.plugins.griffe").addHandler(_WarningsAreErrors())


class HouseStyle(griffe.Extension):
    """Converts each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, obj: griffe.Object) -> str:
    """Convert a docstring to Markdown."""
    text = _ROLE.sub(r"`\1`", text)
    text = _LITERAL.sub(_fenced, text + "\n").rstrip()
    text = _TABLE.sub(_table, text)
    text = "\n".join(_split_names(text.split("\n")))
    parts = text.split("```")
    # Parts with an even number are outside the code blocks.
    parts[::2] = [
        _NAME.sub(lambda match: _link(match, obj), part) for part in parts[::2]
    ]
    return "```".join(parts)


def _fenced(match: re.Match[str]) -> str:
    before = f"{match[1]}:\n\n" if match[1] else ""
    return f"{before}```python\n{textwrap.dedent(match[2]).strip()}\n```\n\n"


def _table(match: re.Match[str]) -> str:
    """Convert a simple table. A line without a first cell continues the previous row."""
    starts = [column.start() for column in re.finditer(r"=+", match[1])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows: list[list[str]] = []
    head, body = (match[2], match[3]) if match[3] else ("", match[2])
    for line in body.splitlines():
        cells = [line[start:end].strip() for start, end in spans]
        if cells[0] and not (rows and rows[-1][0].endswith(",")):
            rows.append(cells)
        else:
            rows[-1] = [
                " ".join(filter(None, pair))
                for pair in zip(rows[-1], cells, strict=True)
            ]
    header = [head[start:end].strip() for start, end in spans]
    lines = [header, ["---"] * len(spans), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _split_names(lines: list[str]) -> list[str]:
    """Give each of several names before one colon its own line."""
    result: list[str] = []
    section = ""
    for number, line in enumerate(lines):
        if heading := _SECTION.match(line):
            section = heading[1]
        elif line and not line.startswith(" "):
            section = ""
        if section and (entry := _SEVERAL_NAMES.match(line)):
            continuation = []
            for later_line in lines[number + 1 :]:
                if not later_line.startswith("     "):
                    break
                continuation.append(later_line)
            names = entry[1].split(", ")
            for name in names[:-1]:
                result += [f"    {name}: {entry[2]}", *continuation]
            result.append(f"    {names[-1]}: {entry[2]}")
        else:
            result.append(line)
    return result


def _link(match: re.Match[str], obj: griffe.Object) -> str:
    """Convert a name to a link if the manual documents such an object, and to code otherwise."""
    name, brackets = match[1], match[2] or ""
    code = f"<code>{name}{brackets}</code>"
    for identifier in _candidates(name, obj):
        return f'<autoref optional identifier="{identifier}">{code}</autoref>'
    return match[0]


def _candidates(name: str, obj: griffe.Object) -> list[str]:
    """Return the full names of the existing objects that a name in a docstring may refer to."""
    scopes = [obj, *_parents(obj)]
    package = scopes[-1]
    candidates = []
    for prefix in [*(scope.path for scope in scopes), "cenote.stores"]:
        for path in (f"{prefix}.{name}", name):
            if not path.startswith("cenote."):
                continue
            try:
                target = package[path.removeprefix("cenote.")]
                candidates.append(target.canonical_path)
            except (KeyError, griffe.AliasResolutionError):
                continue
    return candidates


def _parents(obj: griffe.Object) -> list[griffe.Object]:
    parents = []
    parent = obj.parent
    while parent is not None:
        parents.append(parent)
        parent = parent.parent
    return parents
