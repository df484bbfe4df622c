"""Check the prose of the manual, of other pages and of docstrings with proselint.

Usage: python docs/lint_prose.py FILE_OR_FOLDER...

proselint reads text, so this replaces code and tables with number signs first. Line numbers stay
the same.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

EXCEPTIONS = {
    "dates_times": "takes numbers such as 10,000 for dates",
    "typography": "the sources are plain ASCII: straight quotes, three dots",
}
"""Checks that are off, each with the reason."""

_MARKDOWN_CODE = re.compile(
    r"^(?P<fence>```+|~~~+).*?^(?P=fence)$|<!--.*?-->|(?P<ticks>`+).+?(?P=ticks)|\]\([^)]*\)",
    re.MULTILINE | re.DOTALL,
)
_DOCSTRING_CODE = re.compile(
    r"(?P<ticks>`+).+?(?P=ticks)|^ *>>>.*$", re.MULTILINE | re.DOTALL
)
_TABLE = re.compile(r"^ *=+(?: +=+)+\n(?:\s*\S.*\n)*", re.MULTILINE)
_LITERAL_BLOCK = re.compile(
    r"::\n(?:\s*\n)+(?P<indent> +)\S.*\n(?:(?P=indent).*\n|\s*\n)*"
)


def main() -> None:
    CheckRegistry().register_many(__register__)
    checks = DEFAULT["checks"] | dict.fromkeys(EXCEPTIONS, False)
    findings = 0
    for file in _files(sys.argv[1:]):
        text = file.read_text(encoding="utf-8")
        prose = (
            _docstrings(text) if file.suffix == ".py" else _hide(_MARKDOWN_CODE, text)
        )
        if not prose.strip():
            continue
        # A number sign in each empty line ends a heading like a sentence.
        prose = re.sub(r"^$", "#", prose, flags=re.MULTILINE)
        for result in LintFile(str(file), prose).lint(DEFAULT | {"checks": checks}):
            findings += 1
            print(f"{file}:{result.pos[0]}: {result.check_result.message}")
    print(f"{findings} findings")
    sys.exit(findings > 0)


def _files(arguments: list[str]) -> Iterator[Path]:
    for path in map(Path, arguments):
        if path.is_file():
            yield path
        else:
            yield from sorted(
                file for file in path.rglob("*") if file.suffix in {".md", ".py"}
            )


def _docstrings(source: str) -> str:
    """Return the prose of the docstrings, each in its own lines, and empty lines elsewhere."""
    lines = [""] * (source.count("\n") + 1)
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            text = ast.get_source_segment(source, node.value) or ""
            text = text.replace('"""', "")
            for pattern in (_LITERAL_BLOCK, _TABLE, _DOCSTRING_CODE):
                text = _hide(pattern, text)
            for number, line in enumerate(text.split("\n")):
                lines[node.lineno - 1 + number] = line
    return "\n".join(lines)


def _hide(pattern: re.Pattern[str], text: str) -> str:
    """Replace what the pattern matches with number signs, and keep the line breaks."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", "#", match[0]), text)


if __name__ == "__main__":
    main()
