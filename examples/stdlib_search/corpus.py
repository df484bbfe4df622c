"""The documentation strings of the Python that runs this: thousands of texts every machine has.

Modules written in Python are parsed and never imported, since importing some of them does things.
What is written in C has no source to parse: those modules are imported and asked.
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
"""The two namespaces: what the library offers, and what is named with a leading underscore."""

MAX_CHUNK_CHARACTERS = 1600
"""Longer docstrings are cut at paragraphs, so that each chunk is about one thing."""

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
_NICER_NAMES = {"ntpath": "os.path", "posixpath": "os.path", "genericpath": "os.path"}
_NICER_NAMES |= {"_collections_abc": "collections.abc"}

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
    """One docstring, and what it documents.

    Attributes:
        name: the qualified name, such as ``"datetime.datetime.strptime"``.
        module: the module to import it from.
        kind: ``"module"``, ``"class"``, ``"function"``, ``"method"`` or ``"property"``.
        text: the docstring, without its indentation.
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
        """The first paragraph."""
        return _PARAGRAPH_BREAK.split(self.text, maxsplit=1)[0]

    def chunks(self) -> Iterator[Chunk]:
        """One chunk; several for a long docstring."""
        metadata = {
            "package": self.module.partition(".")[0],
            "module": self.module,
            "kind": self.kind,
            "name": self.name,
        }
        for position, part in enumerate(_cut(self.text)):
            yield Chunk(
                id=Chunk.make_id(self.name, position),
                document_id=self.name,
                content=part,
                position=position,
                metadata=metadata,
            )


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as it is embedded.

    Attributes:
        chunk: what is stored.
        text: what its embedding is made from: the content and the qualified name.
        surroundings: the summaries of its class and its module, for a model that learns which
            words belong together.
    """

    chunk: Chunk
    text: str
    surroundings: str


@dataclass(slots=True)
class _Source:
    """A module that was parsed.

    Attributes:
        docstrings: its own and those of all it defines.
        imports: the modules it imports names from, with the names; ``"*"`` for all.
        exported: its ``__all__`` where that is a plain list; None otherwise.
    """

    docstrings: list[Docstring] = field(default_factory=list)
    imports: list[tuple[str, list[str]]] = field(default_factory=list)
    exported: list[str] | None = None


def read_standard_library() -> list[Docstring]:
    """Every docstring of the standard library, each name once, by name."""
    with _no_garbage_collection():
        sources = {name: _parse(name, path) for name, path in _source_files()}
    found: dict[str, Docstring] = {}
    for docstring in _under_public_names(sources):
        found.setdefault(docstring.name, docstring)
    for docstring in _written_in_c(sources):
        found.setdefault(docstring.name, docstring)
    return sorted(found.values(), key=lambda docstring: docstring.name)


def passages_by_namespace(docstrings: list[Docstring]) -> dict[str, list[Passage]]:
    """What the store is to hold, ordered by the docstrings' names."""
    summaries = {docstring.name: docstring.summary for docstring in docstrings}
    passages: dict[str, list[Passage]] = {PUBLIC: [], PRIVATE: []}
    for docstring in docstrings:
        name_in_words = " ".join(split_words(docstring.name))
        parents = {docstring.module, docstring.name.rpartition(".")[0]} - {docstring.name}
        surroundings = "\n".join(summaries.get(parent, "") for parent in sorted(parents))
        for chunk in docstring.chunks():
            # Name and summary say most, so they come twice.
            parts = [docstring.name, name_in_words, docstring.summary, chunk.content]
            passages[docstring.namespace].append(Passage(chunk, "\n".join(parts), surroundings))
    return passages


def split_words(text: str) -> list[str]:
    """Words, those of snake_case and CamelCase one by one."""
    return _WORD.findall(text)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _cut(text: str) -> Iterator[str]:
    """Join paragraphs up to `MAX_CHUNK_CHARACTERS`; a longer paragraph stays whole."""
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
    """Statements of a body, and of its ``if`` and ``try`` blocks."""
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


# The names people import things by


def _under_public_names(sources: dict[str, _Source]) -> Iterator[Docstring]:
    """Call each thing what its users call it: ``asyncio.gather``, not ``asyncio.tasks.gather``."""
    public_names = _public_names(sources)
    for module, source in sources.items():
        for docstring in source.docstrings:
            top, dot, rest = docstring.name.removeprefix(f"{module}.").partition(".")
            if face := public_names.get((module, top)):
                yield replace(docstring, name=f"{face}.{top}{dot}{rest}", module=face)
            elif nicer := _NICER_NAMES.get(module):
                name = nicer + docstring.name.removeprefix(module)
                yield replace(docstring, name=name, module=nicer)
            else:
                yield docstring


def _public_names(sources: dict[str, _Source]) -> dict[tuple[str, str], str]:
    """For (module, name): the public module that offers it instead.

    That is one which imports the name from a private module, or from a submodule of its own.
    """
    faces: dict[tuple[str, str], str] = {}
    for face, source in sources.items():
        if _is_private(face):
            continue
        for origin, names in source.imports:
            if origin in sources and (_is_private(origin) or origin.startswith(f"{face}.")):
                for name in _offered(source, sources[origin], names):
                    faces.setdefault((origin, name), face)
    return faces


def _offered(face: _Source, origin: _Source, imported: list[str]) -> Iterator[str]:
    if imported == ["*"]:
        imported = origin.exported or [
            docstring.name.removeprefix(f"{docstring.module}.").partition(".")[0]
            for docstring in origin.docstrings
        ]
    for name in imported:
        if not name.startswith("_") and (face.exported is None or name in face.exported):
            yield name


# Modules written in C


def _written_in_c(sources: dict[str, _Source]) -> Iterator[Docstring]:
    seen: set[int] = set()
    for name in _modules_to_import(sources):
        module = _import(name)
        if module is None:
            continue
        if name not in sources and (text := inspect.getdoc(module)):
            yield Docstring(name, name, "module", text)
        for attribute in getattr(module, "__all__", dir(module)):
            value = getattr(module, attribute, None)
            if attribute.startswith("_") or id(value) in seen:
                continue
            seen.add(id(value))
            if _is_c(value, name, sources):
                # Nobody writes builtins.round.
                qualified = attribute if name == "builtins" else f"{name}.{attribute}"
                yield from _members(value, qualified, name)


def _modules_to_import(sources: dict[str, _Source]) -> list[str]:
    """Public modules without a source, and those that offer what a module without one holds."""
    compiled = {name for name in sys.stdlib_module_names - _SKIPPED if name not in sources}
    hidden = {name for name in compiled if _is_private(name)} | {"nt", "posix"}
    faces = {"re"}  # its classes come from no import
    for name, source in sources.items():
        if any(origin in hidden for origin, _ in source.imports):
            faces.add(name)
    faces |= {face.rpartition(".")[0] for face in faces} & sources.keys()
    wanted = {name for name in compiled | faces if not _is_private(name)} - hidden
    return ["builtins", *sorted(wanted - _NOT_IMPORTED - {"builtins"})]


def _import(name: str) -> types.ModuleType | None:
    """The module; None where this platform or this build of Python lacks it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are deprecated
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def _is_c(value: object, module: str, sources: dict[str, _Source]) -> bool:
    """Whether a module's member is compiled, and not borrowed from a module with a source."""
    home = getattr(value, "__module__", None)
    is_borrowed = home in sources and home != module
    return isinstance(value, type | types.BuiltinFunctionType) and not is_borrowed


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
    """Parsing makes millions of objects and no garbage: half the time would go to looking."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
