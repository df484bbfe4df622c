"""Checks of the manual that its build does not make: pictures, the menu, tables, long lines."""

from __future__ import annotations

import re

from support.commands import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_pictures_exist() -> None:
    """Each picture of a page exists."""
    pictures = [
        page.parent / path
        for page in [*PAGES, REPOSITORY / "README.md"]
        for path in re.findall(r"!\[[^]]*\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert pictures
    assert [picture for picture in pictures if not picture.is_file()] == []


def test_the_menu_has_every_page() -> None:
    """The menu of the site contains every page once."""
    menu = re.findall(r"[-:] ([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(str(page.relative_to(DOCS).as_posix()) for page in PAGES)


def test_tables_of_docstrings_have_a_head() -> None:
    """Each table of a docstring has three rules: without a head, the site shows an empty row."""
    rule = re.compile(r"^ *={3,}(?: +={3,})+$", re.MULTILINE)
    rules = {
        module.name: len(rule.findall(module.read_text(encoding="utf-8")))
        for module in (REPOSITORY / "cenote").rglob("*.py")
    }
    assert any(rules.values())
    assert [name for name, count in rules.items() if count % 3] == []


def test_lines_of_code_fit_the_page() -> None:
    """No line of code has more than 88 characters, which fit the site at 1280 pixels.

    The site wraps text and shell commands.
    """
    code = re.compile(r"^```(?!text|console)\w+[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    too_long = [
        f"{page.name}: {line}"
        for page in PAGES
        for block in code.findall(page.read_text(encoding="utf-8"))
        for line in block.splitlines()
        if len(line) > 88
    ]
    assert too_long == []
