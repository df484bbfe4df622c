"""Read the docstrings of the standard library of the running Python.

Modules written in Python are parsed, not imported, because importing some of them has side effects.
Modules written in C have no source to parse, so they are imported and inspected.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from cenote.models import Chunk

PUBLIC, PRIVATE = "stdlib", "stdlib-private"
"""The two namespaces: public names, and names with a leading underscore."""

MAX_CHUNK_CHARACTERS = 1600
"""Length above which docstrings are split at paragraphs, which keeps each chunk on one subject."""

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SKIPPED = {
    "__pycache__",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
}
_SKIPPED |= {"test", "tests", "turtledemo", "posixpath" if sys.platform == "win32" else "ntpath"}
_NOT_IMPORTED = {"readline"}  # may write to the terminal when it is imported
_DOCUMENTED_NAMES = {"ntpath": "os.path", "posixpath": "os.path", "genericpath": "os.path"}
_DOCUMENTED_NAMES |= {"_collections_abc": "collections.abc"}

_C_MEMBERS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    staticmethod,
    classmethod,
)
_C_ATTRIBUTES = (types.GetSetDescriptorType, types.MemberDescriptorType)

_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring and the name of the object it documents.

    Attributes:
        name: Qualified name, e.g. ``"datetime.datetime.strptime"``.
        module: Module to import the object from.
        kind: ``"module"``, ``"class"``, ``"function"``, ``"method"`` or ``"property"``.
        text: The docstring without its indentation.
    """

    name: str
    module: str
    kind: str
    text: str

    @property
    def namespace(self) -> str:
        return PRIVATE if _is_private(self.name) else PUBLIC

    @property
    def summary(self) -> str:
        """First paragraph of the docstring."""
        return _PARAGRAPH_BREAK.split(self.text, maxsplit=1)[0]

    def chunks(self) -> Iterator[Chunk]:
        """Yield one chunk, or several for a long docstring."""
        metadata = {
            "package": self.module.partition(".")[0],
            "module": self.module,
            "kind": self.kind,
            "name": self.name,
        }
        for position, part in enumerate(_split(self.text)):
            yield Chunk(
                id=Chunk.make_id(self.name, position),
                document_id=self.name,
                content=part,
                position=position,
                metadata=metadata,
            )


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk and the texts that its embedding is made from.

    Attributes:
        chunk: Chunk to store.
        text: Text to embed: the qualified name, the summary and the content.
        surroundings: Summaries of the class and the module, for a model that learns which words
            occur together.
    """

    chunk: Chunk
    text: str
    surroundings: str


@dataclass(slots=True)
class _Source:
    """A parsed module.

    Attributes:
        docstrings: Docstrings of the module and of everything it defines.
        imports: Modules it imports from, each with the imported names; ``"*"`` stands for all.
        exported: Its ``__all__`` if that is a literal list; None otherwise.
    """

    docstrings: list[Docstring] = field(default_factory=list)
    imports: list[tuple[str, list[str]]] = field(default_factory=list)
    exported: list[str] | None = None


def read_standard_library() -> list[Docstring]:
    """Return all docstrings of the standard library, sorted by name and each name once."""
    with _no_garbage_collection():
        sources = {name: _parse(name, path) for name, path in _source_files()}
    by_name: dict[str, Docstring] = {}
    for docstring in _with_public_names(sources):
        by_name.setdefault(docstring.name, docstring)
    for docstring in _docstrings_of_c_modules(sources):
        by_name.setdefault(docstring.name, docstring)
    return sorted(by_name.values(), key=lambda docstring: docstring.name)


def passages_by_namespace(docstrings: list[Docstring]) -> dict[str, list[Passage]]:
    """Return the passages to store in each namespace, in the order of the docstrings."""
    summaries = {docstring.name: docstring.summary for docstring in docstrings}
    passages: dict[str, list[Passage]] = {PUBLIC: [], PRIVATE: []}
    for docstring in docstrings:
        name_in_words = " ".join(split_words(docstring.name))
        parents = {docstring.module, docstring.name.rpartition(".")[0]} - {docstring.name}
        surroundings = "\n".join(summaries.get(parent, "") for parent in sorted(parents))
        for chunk in docstring.chunks():
            # The name and the summary say most about the object, so both occur twice in the text.
            parts = [docstring.name, name_in_words, docstring.summary, chunk.content]
            passages[docstring.namespace].append(Passage(chunk, "\n".join(parts), surroundings))
    return passages


def split_words(text: str) -> list[str]:
    """Return the words of a text; snake_case and CamelCase names are split into their words."""
    return _WORD.findall(text)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _split(text: str) -> Iterator[str]:
    """Split into parts of up to `MAX_CHUNK_CHARACTERS`; a longer paragraph is one part."""
    part = ""
    for paragraph in _PARAGRAPH_BREAK.split(text):
        if part and len(part) + len(paragraph) > MAX_CHUNK_CHARACTERS:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph
    yield part


# Modules written in Python


def _source_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names - _SKIPPED):
        if (file := root / f"{top}.py").is_file():
            yield top, file
        for file in sorted((root / top).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if not _SKIPPED.intersection(parts):
                yield ".".join(parts).removesuffix(".__init__"), file


def _parse(module: str, path: Path) -> _Source:
    tree = ast.parse(path.read_bytes())
    source = _Source()
    if text := ast.get_docstring(tree):
        source.docstrings.append(Docstring(module, module, "module", text))
    is_package = path.name == "__init__.py"
    for node in _statements(tree.body):
        if isinstance(node, _Definition):
            source.docstrings.extend(_definitions(node, module, module, in_class=False))
        elif isinstance(node, ast.ImportFrom):
            origin = _imported_module(node, module, is_package)
            source.imports.append((origin, [alias.name for alias in node.names]))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            source.exported = _literal_names(node.value)
    return source


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, including those in its ``if`` and ``try`` blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _statements(handler.body)


def _definitions(
    node: _Definition, module: str, parent: str, in_class: bool
) -> Iterator[Docstring]:
    name = f"{parent}.{node.name}"
    if text := ast.get_docstring(node):
        yield Docstring(name, module, _kind(node, in_class), text)
    if isinstance(node, ast.ClassDef):
        for inner in _statements(node.body):
            if isinstance(inner, _Definition):
                yield from _definitions(inner, module, name, in_class=True)


def _kind(node: _Definition, in_class: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    if not in_class:
        return "function"
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return "property" if decorators & {"property", "cached_property"} else "method"


def _imported_module(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    parents = parents[: len(parents) - node.level + 1]
    return ".".join([*parents, node.module] if node.module else parents)


def _literal_names(node: ast.expr) -> list[str] | None:
    try:
        return list(ast.literal_eval(node))
    except ValueError:
        return None


# Public names


def _with_public_names(sources: dict[str, _Source]) -> Iterator[Docstring]:
    """Rename objects to their public names: ``asyncio.gather``, not ``asyncio.tasks.gather``."""
    public_names = _public_names(sources)
    for module, source in sources.items():
        for docstring in source.docstrings:
            top, dot, rest = docstring.name.removeprefix(f"{module}.").partition(".")
            if public := public_names.get((module, top)):
                yield replace(docstring, name=f"{public}.{top}{dot}{rest}", module=public)
            elif documented := _DOCUMENTED_NAMES.get(module):
                name = documented + docstring.name.removeprefix(module)
                yield replace(docstring, name=name, module=documented)
            else:
                yield docstring


def _public_names(sources: dict[str, _Source]) -> dict[tuple[str, str], str]:
    """Map (module, name) to the public module that re-exports the name.

    A public module re-exports what it imports from a private module or one of its submodules.
    """
    public_modules: dict[tuple[str, str], str] = {}
    for module, source in sources.items():
        if _is_private(module):
            continue
        for origin, names in source.imports:
            if origin in sources and (_is_private(origin) or origin.startswith(f"{module}.")):
                for name in _reexported(source, sources[origin], names):
                    public_modules.setdefault((origin, name), module)
    return public_modules


def _reexported(module: _Source, origin: _Source, imported: list[str]) -> Iterator[str]:
    if imported == ["*"]:
        imported = origin.exported or [
            docstring.name.removeprefix(f"{docstring.module}.").partition(".")[0]
            for docstring in origin.docstrings
        ]
    for name in imported:
        if not name.startswith("_") and (module.exported is None or name in module.exported):
            yield name


# Modules written in C


def _docstrings_of_c_modules(sources: dict[str, _Source]) -> Iterator[Docstring]:
    visited_ids: set[int] = set()
    for name in _modules_to_import(sources):
        module = _import(name)
        if module is None:
            continue
        if name not in sources and (text := inspect.getdoc(module)):
            yield Docstring(name, name, "module", text)
        for attribute in getattr(module, "__all__", dir(module)):
            value = getattr(module, attribute, None)
            if attribute.startswith("_") or id(value) in visited_ids:
                continue
            visited_ids.add(id(value))
            if _is_compiled(value, name, sources):
                # People write round, not builtins.round.
                qualified = attribute if name == "builtins" else f"{name}.{attribute}"
                yield from _members(value, qualified, name)


def _modules_to_import(sources: dict[str, _Source]) -> list[str]:
    """Return the public compiled modules, and the public modules that re-export private ones."""
    compiled = {name for name in sys.stdlib_module_names - _SKIPPED if name not in sources}
    private = {name for name in compiled if _is_private(name)} | {"nt", "posix"}
    reexporting = {"re"}  # its compiled classes come from no import
    for name, source in sources.items():
        if any(origin in private for origin, _ in source.imports):
            reexporting.add(name)
    reexporting |= {name.rpartition(".")[0] for name in reexporting} & sources.keys()
    names = {name for name in compiled | reexporting if not _is_private(name)} - private
    return ["builtins", *sorted(names - _NOT_IMPORTED - {"builtins"})]


def _import(name: str) -> types.ModuleType | None:
    """Import a module; return None if this platform or this build of Python lacks it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules are deprecated
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def _is_compiled(value: object, module: str, sources: dict[str, _Source]) -> bool:
    """Return True for a compiled member that was not imported from a module with a source."""
    defined_in = getattr(value, "__module__", None)
    is_imported = defined_in in sources and defined_in != module
    return isinstance(value, type | types.BuiltinFunctionType) and not is_imported


def _members(value: object, name: str, module: str) -> Iterator[Docstring]:
    is_class = isinstance(value, type)
    if text := _own_docstring(value):
        yield Docstring(name, module, "class" if is_class else "function", text)
    if isinstance(value, type):
        for attribute, member in vars(value).items():
            kind = _member_kind(member)
            if kind and not attribute.startswith("_") and (text := _own_docstring(member)):
                yield Docstring(f"{name}.{attribute}", module, kind, text)


def _member_kind(member: object) -> str | None:
    if isinstance(member, _C_MEMBERS):
        return "method"
    return "property" if isinstance(member, _C_ATTRIBUTES) else None


def _own_docstring(value: object) -> str | None:
    text = value.__doc__
    return inspect.cleandoc(text) if isinstance(text, str) and text.strip() else None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which would take half of the time of parsing.

    Parsing creates millions of objects and no garbage.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
