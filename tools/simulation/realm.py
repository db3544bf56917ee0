# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The code under test, loaded once more for each simulated process.

Its sources are compiled as they are. Only the results of an `import` differ: stand-ins of the
simulation in place of `os`, `time`, `threading` and the like. So not a line is changed for the
simulation, and no call passes it by.

    process A ── backends.file and its importers ── modules of its own, with their own state
    process B ── backends.file and its importers ── others
    library ──── the rest of common and client ──── keeps no state: one set for all processes

The world is small. A MiB has 1,024 bytes in it, so that an image of many steps, blocks and
requests has less than 100 KB. Only texts, such as JSON and headers, have their full size.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import types
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional

import ovirt_imageio.client
import ovirt_imageio.common

_PREFIX = "ovirt_imageio"
_SOURCES = {
    "ovirt_imageio.common": Path(next(iter(ovirt_imageio.common.__path__))),
    "ovirt_imageio.client": Path(next(iter(ovirt_imageio.client.__path__))),
}

_PLAIN = frozenset(
    [
        "__future__",
        "abc",
        "argparse",
        "array",
        "ast",
        "base64",
        "binascii",
        "bisect",
        "calendar",
        "codecs",
        "collections",
        "concurrent",
        "contextlib",
        "contextvars",
        "copy",
        "ctypes",
        "dataclasses",
        "datetime",
        "decimal",
        "difflib",
        "enum",
        "errno",
        "fnmatch",
        "fractions",
        "functools",
        "getpass",
        "gettext",
        "hashlib",
        "heapq",
        "hmac",
        "html",
        "http",
        "inspect",
        "io",
        "ipaddress",
        "itertools",
        "json",
        "locale",
        "logging",
        "math",
        "mmap",
        "numbers",
        "operator",
        "platform",
        "pprint",
        "queue",
        "re",
        "requests",
        "shlex",
        "socket",
        "ssl",
        "stat",
        "statistics",
        "string",
        "struct",
        "sys",
        "textwrap",
        "traceback",
        "types",
        "typing",
        "unicodedata",
        "urllib",
        "uuid",
        "warnings",
        "weakref",
        "zlib",
    ]
)
"""Modules that are pure, or that the simulated roads never use."""

_STATEFUL = frozenset(["ovirt_imageio.common.backends.file"])
"""Modules that keep state: each process has its own of them, and of what imports them."""

_UNITS = "ovirt_imageio.common.units"
_FULL_SIZE = ("ovirt_imageio.common.backends.http", "ovirt_imageio.common.buffers")
"""Modules whose units measure texts or memory, not images."""

_SHARED = frozenset(
    [
        "ovirt_imageio.common.errors",
        "ovirt_imageio.common.version",
        "ovirt_imageio.common.imagesapi",
        "ovirt_imageio.common.extents",
        "ovirt_imageio.common.backends.http.exchange",
        "ovirt_imageio.common.backends.http.errors",
        "ovirt_imageio.client.version",
    ]
)
"""Modules without sizes and without state, used as they are: errors are the same everywhere."""

_RACED = ("executor", "journal", "progress", "transfer", "hashing", "comparing", "verify")
"""Modules of the client in which threads may be interrupted between two statements."""


class Patch(NamedTuple):
    """A change of the sources: a planted bug.

    Attributes:
        module: Name of the module.
        old: Text that stands there once.
        new: Its replacement.
    """

    module: str
    old: str
    new: str


class Realm:
    """A set of modules.

    Args:
        outer: Where modules without state are taken from; None for the library itself.
        standins: Modules in place of others.
        patches: Planted bugs.
        raced: Interrupt threads between statements, by calling this.
    """

    def __init__(
        self,
        standins: Mapping[str, Any],
        *,
        outer: Optional[Realm] = None,
        patches: Iterable[Patch] = (),
        raced: Optional[Callable[[], None]] = None,
    ) -> None:
        self._standins = standins
        self._outer = outer
        self._patches = tuple(patches)
        self._raced = raced
        self._modules: dict[str, Any] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}
        opening = standins.get("builtins.open")
        if opening is not None:
            self._builtins["open"] = opening

    def module(self, name: str) -> Any:
        """Return a module, loaded if it was not.

        Raises:
            ImportError: It is none that the simulation knows.
        """
        found = self._modules.get(name)
        if found is None:
            found = self._modules[name] = self._find(name)
        return found

    def _import_module(self, name: str, package: Optional[str] = None) -> Any:
        """See importlib.import_module."""
        return self.module(f"{package}{name}" if name.startswith(".") else name)

    def _find(self, name: str) -> Any:
        if name in self._standins:
            return self._standins[name]
        if name == "importlib":
            return types.SimpleNamespace(import_module=self._import_module)
        if name == _PREFIX:
            return types.SimpleNamespace()
        if not name.startswith(_PREFIX + "."):
            if name.partition(".")[0] not in _PLAIN:
                raise ImportError(f"the simulation knows no module {name}: add it to tools/simulation/realm.py")
            return importlib.import_module(name)
        if name in _SHARED:
            return importlib.import_module(name)
        if self._outer is not None and not keeps_state(name):
            return self._outer.module(name)
        return self._load(name)

    def _load(self, name: str) -> Any:
        path, code = compiled(name, _relevant(name, self._patches), self._raced is not None)
        module = types.ModuleType(name)
        is_package = path.name == "__init__.py"
        module.__dict__.update(
            __builtins__=self._builtins,
            __file__=str(path),
            __package__=name if is_package else name.rpartition(".")[0],
            _turn_=self._raced,
        )
        if is_package:
            module.__path__ = [str(path.parent)]
        self._modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            del self._modules[name]
            raise
        self._attach(name, module)
        return module

    def _attach(self, name: str, module: Any) -> None:
        above, _, last = name.rpartition(".")
        if above in self._modules:
            setattr(self._modules[above], last, module)

    def _import(
        self,
        name: str,
        variables: Optional[Mapping[str, Any]] = None,
        local: object = None,
        names: Optional[Iterable[str]] = (),
        level: int = 0,
    ) -> Any:
        """Stand in for `__import__`, which an import statement calls."""
        if level:
            assert variables is not None
            package = variables["__package__"].rsplit(".", level - 1)[0] if level > 1 else variables["__package__"]
            name = f"{package}.{name}" if name else package
        if not names:
            if name.startswith(_PREFIX + "."):
                raise ImportError(f"the simulation knows no 'import {name}': use 'from … import'")
            self.module(name)
            return self.module(name.partition(".")[0])
        if name == _UNITS and variables is not None and variables["__name__"].startswith(_FULL_SIZE):
            return importlib.import_module(name)
        module = self.module(name)
        if not name.startswith(_PREFIX):
            return module
        parts = [part for part in names if is_module(f"{name}.{part}")]
        return _WithParts(module, {part: self.module(f"{name}.{part}") for part in parts}) if parts else module


class _WithParts:
    """A package, and modules of it that it does not name itself."""

    def __init__(self, module: Any, parts: dict[str, Any]) -> None:
        self.__dict__.update(parts)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def check(patches: tuple[Patch, ...]) -> None:
    """Look if patches fit.

    Raises:
        ValueError: One does not.
    """
    for name in {patch.module for patch in patches}:
        compiled(name, _relevant(name, patches), False)


def _relevant(name: str, patches: Iterable[Patch]) -> tuple[Patch, ...]:
    return tuple(patch for patch in patches if patch.module == name)


@functools.cache
def is_module(name: str) -> bool:
    """Tell if there is a module of that name."""
    try:
        source_of(name)
    except ImportError:
        return False
    return True


@functools.cache
def keeps_state(name: str) -> bool:
    """Tell if a module keeps state, or imports one that does."""
    waiting, seen = [name], {name}
    while waiting:
        name = waiting.pop()
        if name in _STATEFUL:
            return True
        found = {other for other in _imports(name) if is_module(other)} - seen
        seen |= found
        waiting += found
    return False


@functools.cache
def _imports(name: str) -> frozenset[str]:
    """Return the modules that a module imports when it is loaded."""
    tree = ast.parse(source_of(name).read_text(encoding="utf-8"))
    package = name if source_of(name).name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module or "")))
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(other for other in found if other.startswith(_PREFIX + "."))


@functools.cache
def source_of(name: str) -> Path:
    """Return where the source of a module is.

    Raises:
        ImportError: There is none.
    """
    for prefix, folder in _SOURCES.items():
        if name == prefix or name.startswith(prefix + "."):
            path = folder.joinpath(*name[len(prefix) + 1 :].split(".")) if name != prefix else folder
            for candidate in (path / "__init__.py", path.with_suffix(".py")):
                if candidate.exists():
                    return candidate
    raise ImportError(f"no module {name}")


@functools.cache
def compiled(name: str, patches: tuple[Patch, ...], raced: bool) -> tuple[Path, types.CodeType]:
    """Return the path and the code of a module.

    Raises:
        ValueError: A patch does not fit.
    """
    importlib.import_module(name)  # dataclasses look the module up among those that are loaded
    path = source_of(name)
    text = path.read_text(encoding="utf-8")
    for patch in patches:
        if text.count(patch.old) != 1:
            raise ValueError(f"{name} holds the text {text.count(patch.old)} times, expected once: {patch.old!r}")
        text = text.replace(patch.old, patch.new)
    tree = ast.parse(text, str(path))
    if raced and name.startswith("ovirt_imageio.client.") and name.rpartition(".")[2] in _RACED:
        tree = ast.fix_missing_locations(_Turns().visit(tree))
    return path, compile(tree, str(path), "exec", dont_inherit=True)


class _Turns(ast.NodeTransformer):
    """Adds a call before each statement of each function; `x.a += b` becomes two of them."""

    def __init__(self) -> None:
        self._depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Change the body of a function."""
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Change the statements below a node."""
        super().generic_visit(node)
        if self._depth:
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                    setattr(node, name, [part for statement in block for part in _with_turn(statement)])
        return node


def _with_turn(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, (ast.Global, ast.Nonlocal, ast.FunctionDef, ast.ClassDef)):
        return [statement]
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return [statement]
    parts: list[ast.stmt] = [statement]
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Attribute):
        parts = _in_two(statement, statement.target)
    first = ast.copy_location(ast.Expr(ast.Call(ast.Name("_turn_", ast.Load()), [], [])), statement)
    return [first, *parts]


def _in_two(statement: ast.AugAssign, target: ast.Attribute) -> list[ast.stmt]:
    """Read, let others go on, then write: as threads of Python may be interrupted."""
    name = ast.Name("_read_", ast.Store())
    reading = ast.Assign([name], ast.Attribute(target.value, target.attr, ast.Load()))
    turn = ast.Expr(ast.Call(ast.Name("_turn_", ast.Load()), [], []))
    adding = ast.AugAssign(ast.Name("_read_", ast.Store()), statement.op, statement.value)
    writing = ast.Assign([target], ast.Name("_read_", ast.Load()))
    return [ast.copy_location(part, statement) for part in (reading, turn, adding, writing)]
