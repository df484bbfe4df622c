"""What the manual takes over from the README, so that it is written once."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

_README = Path(__file__).parents[1] / "README.md"
_TAKEN = re.compile(r"^<!-- README\.md: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the parts that a page names, and turn their links, which are the README's."""
    to_docs = os.path.relpath(".", os.path.dirname(page.file.src_uri) or ".")

    def part(found: re.Match[str]) -> str:
        name = found[1]
        text = _README.read_text(encoding="utf-8")
        (taken,) = re.findall(rf"<!-- {name}:.*?-->(.*?)<!-- end of {name} -->", text, re.DOTALL)
        return str(taken).strip().replace("](docs/", f"]({to_docs}/")

    return _TAKEN.sub(part, markdown)
