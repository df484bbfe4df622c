"""A MkDocs hook that inserts parts of the README into pages of the manual."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

_README = Path(__file__).parents[1] / "README.md"
_PLACEHOLDER = re.compile(r"^<!-- README\.md: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each placeholder with the README's part of that name, and adapt its links."""
    to_docs = os.path.relpath(".", os.path.dirname(page.file.src_uri) or ".")

    def part(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        text = _README.read_text(encoding="utf-8")
        (content,) = re.findall(rf"<!-- {name}:.*?-->(.*?)<!-- end of {name} -->", text, re.DOTALL)
        return str(content).strip().replace("](docs/", f"]({to_docs}/")

    return _PLACEHOLDER.sub(part, markdown)
