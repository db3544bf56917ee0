# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways to break a module: one small change of its syntax tree each.

Left alone are texts, annotations, default texts, and what only names things: a changed message
of an error breaks nobody.
"""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}

_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
}

Edit = Callable[[ast.AST], Optional[ast.AST]]


class Mutant(NamedTuple):
    """One way to break a module.

    Attributes:
        line: Where.
        what: The old code and its replacement.
        code: Its line, without indentation.
        tree: Returns the broken module.
    """

    line: int
    what: str
    code: str
    tree: Callable[[], ast.Module]


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    found = [(_place(node), what, node, edit) for node in _nodes(tree) for what, edit in _edits(node)]
    lines = source.splitlines()
    for (line, _), what, node, edit in sorted(found, key=lambda item: item[:2]):
        yield Mutant(line, what, lines[line - 1].strip(), functools.partial(_replaced, tree, node, edit))


def _place(node: ast.AST) -> tuple[int, int]:
    """Return line and column of a node that is code."""
    assert isinstance(node, (ast.stmt, ast.expr))
    return node.lineno, node.col_offset


def _replaced(tree: ast.Module, node: ast.AST, edit: Edit) -> ast.Module:
    """Return a copy of a tree in which a node is edited."""
    places = {id(original): place for place, original in enumerate(ast.walk(tree))}
    copied = copy.deepcopy(tree)
    target = list(ast.walk(copied))[places[id(node)]]
    replacement = edit(target)
    if replacement is not None:
        _Replace(target, ast.copy_location(replacement, target)).visit(copied)
    return ast.fix_missing_locations(copied)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that are code: no annotations, texts or type checking."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_left_alone(child):
                continue
            yield child
            yield from _nodes(child)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.FunctionDef) and node.name == "__repr__":
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
        return isinstance(node.value.value, ast.Name) and node.value.value.id in ("Union", "Callable", "Optional")
    return isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom))


def _edits(node: ast.AST) -> Iterator[tuple[str, Edit]]:
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            new = _COMPARE[type(op)]
            yield f"{type(op).__name__} -> {new.__name__}", _set_op(place, new)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _BINARY and not _is_text(node):
        new_op = _BINARY[type(node.op)]
        yield f"{type(node.op).__name__} -> {new_op.__name__}", lambda copied: setattr(copied, "op", new_op())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda copied: setattr(copied, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield f"without {type(node.op).__name__}", lambda copied: getattr(copied, "operand", None)
    elif isinstance(node, ast.Constant):
        yield from _constant_edits(node)
    elif isinstance(node, (ast.Break, ast.Continue)):
        other_jump = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        yield f"{type(node).__name__} -> {type(other_jump).__name__}", lambda copied: other_jump
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "return None", lambda copied: ast.Return(ast.Constant(None))
    if isinstance(node, (ast.Raise, ast.AugAssign)) or (isinstance(node, ast.Expr) and not _is_yield(node)):
        yield f"no {ast.unparse(node)[:50]}", lambda copied: ast.Pass()
    if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        yield "condition negated", _negate


def _constant_edits(node: ast.Constant) -> Iterator[tuple[str, Edit]]:
    if isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", lambda copied: ast.Constant(not node.value)
    elif isinstance(node.value, int):
        value = node.value
        yield f"{value} -> {value + 1}", lambda copied: ast.Constant(value + 1)


def _set_op(place: int, new: type[ast.cmpop]) -> Edit:
    def edit(node: ast.AST) -> None:
        assert isinstance(node, ast.Compare)
        node.ops[place] = new()

    return edit


def _negate(node: ast.AST) -> None:
    assert isinstance(node, (ast.If, ast.IfExp, ast.While))
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(child, ast.JoinedStr) or _is_str(child) for child in ast.iter_child_nodes(node))


def _is_str(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_yield(node: ast.Expr) -> bool:
    return isinstance(node.value, (ast.Yield, ast.YieldFrom))
