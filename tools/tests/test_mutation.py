# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants differ from the source in one place, and texts stay as they are."""

from __future__ import annotations

import ast

import pytest
from mutation import __main__ as mutation
from mutation.mutants import mutants


def broken(source):
    """Return the source of each mutant."""
    return [ast.unparse(mutant.tree()) for mutant in mutants(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"pass", "a <= b"}),
        ("x = a == 1", {"x = a != 1", "x = a == 2"}),
        ("x = a + b", {"x = a - b"}),
        ("x = a and b", {"x = a or b"}),
        ("x = not a", {"x = a"}),
        ("x = -a", {"x = a"}),
        ("x = True", {"x = False"}),
        ("x += 1", {"x -= 1", "x += 2", "pass"}),
        ("f()", {"pass"}),
        ("if a:\n    b = c", {"if not a:\n    b = c"}),
        ("x = a if b else c", {"x = a if not b else c"}),
        ("while a < b:\n    break", {"while a <= b:\n    break", "while a < b:\n    continue"}),
        ("def f():\n    return a", {"def f():\n    return None"}),
        ("def f():\n    raise E", {"def f():\n    pass"}),
        ("def f(a=1):\n    return None", {"def f(a=2):\n    return None"}),
    ],
)
def test_each_mutant_breaks_one_thing(source, expected):
    found = broken(source)
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring of 5."""',
        "import a",
        "x: List[1] = y",
        "def f(a: int) -> Callable[[int], 5]:\n    pass",
        "if TYPE_CHECKING:\n    x = 1 + 2",
        "class A:\n    def __repr__(self):\n        return self.a + 1",
        'x = f"{a + 1}"',
        'x = "a" + b',
    ],
)
def test_texts_and_annotations_are_left_alone(source):
    assert broken(source) == []


def test_mutant_tells_where_it_is():
    (mutant,) = mutants("x = 1\ny = a < b\n"[6:])
    assert (mutant.line, mutant.what, mutant.code) == (1, "Lt -> LtE", "y = a < b")


def test_every_module_and_its_tests_are_there():
    tests = mutation.TOP / mutation.COMMON / "tests"
    for module in mutation.MODULES:
        assert module.path.exists()
        for test in (*module.tests, *module.wider):
            assert (tests / test).exists(), test


def test_page_of_explanations_is_read(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("| module | code | change | why |\n|---|---|---|---|\n| `m` | `a \\| b` | `x -> y` | Because. |\n")
    monkeypatch.setattr(mutation, "EXPLAINED", page)
    assert mutation.explanations() == {("m", "a | b", "x -> y"): "Because."}
