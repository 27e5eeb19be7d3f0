"""What can be read off parsed code: whole numbers, names, chains of calls, and what a name stands for at a place."""

from __future__ import annotations

import ast
import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module)


@dataclasses.dataclass(frozen=True)
class Chain:
    """``source.a(...).b(...)``: its calls from the first to the last.

    Attributes:
        calls: The calls.
        root: The name that the first is called on; None where it is called on none.
    """

    calls: tuple[ast.Call, ...]

    @property
    def root(self) -> ast.Name | None:
        owner = self.calls[0].func.value if self.calls and isinstance(self.calls[0].func, ast.Attribute) else None
        return owner if isinstance(owner, ast.Name) else None


def chain_of(call: ast.Call) -> Chain:
    """The chain that ends with a call."""
    calls = [call]
    while isinstance(calls[-1].func, ast.Attribute) and isinstance(calls[-1].func.value, ast.Call):
        calls.append(calls[-1].func.value)
    return Chain(tuple(reversed(calls)))


def called(call: ast.Call) -> str:
    """The last part of the name that is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def owner(call: ast.Call) -> str:
    """The part of the name before the last; empty where there is none."""
    found = call.func.value if isinstance(call.func, ast.Attribute) else None
    return found.attr if isinstance(found, ast.Attribute) else getattr(found, "id", "")


def words(call: ast.Call) -> dict[str, ast.expr]:
    """The arguments that are passed by name."""
    return {word.arg: word.value for word in call.keywords if word.arg}


def text(node: ast.AST | None) -> str:
    """A constant as text, or the last part of a name: of a dtype, a path, an option."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return str(node.value) if isinstance(node, ast.Constant) else getattr(node, "id", "")


class Names:
    """What names of one module stand for; nothing is run.

    Args:
        tree: The module.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self._stores = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_stored(node)]
        self._constants: dict[str, Any] = {}
        stored = [node.id for node in self._stores]
        for node in tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, self.value(node.value)
                if value is not None and stored.count(name) == 1:
                    self._constants[name] = value

    def value(self, node: ast.AST | None) -> Any:
        """A whole number, a share like 0.2, a text or a tuple of them that can be read off; None for what cannot.

        Names count where the module gives them one plain value, once.
        """
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, (int, float, str)) else None
        if isinstance(node, ast.Name):
            return self._constants.get(node.id)
        if isinstance(node, (ast.Tuple, ast.List)):
            return tuple(self.value(item) for item in node.elts)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            left, right = self.value(node.left), self.value(node.right)
            divides = isinstance(node.op, ast.FloorDiv)
            if isinstance(left, int) and isinstance(right, int) and not (divides and right == 0):
                return _OPERATIONS[type(node.op)](left, right)
        return None

    def number(self, node: ast.AST | None) -> int | None:
        """A whole number that can be read off."""
        found = self.value(node)
        return found if isinstance(found, int) else None

    def shape(self, node: ast.AST | None) -> tuple[int, ...] | None:
        """A shape, or a single length, whose lengths can all be read off."""
        found = self.value(node)
        lengths = (found,) if isinstance(found, int) else found
        if not isinstance(lengths, tuple) or not all(isinstance(one, int) and one >= 0 for one in lengths):
            return None
        return lengths

    def meant(self, name: ast.Name) -> ast.expr | None:
        """What a name was given last before a place; None where that depends on the way that the program takes.

        The last assignment above it in its function, where that is a plain one and stands in a block that the place is in.
        """
        scope = self._scope(name)
        own = [store for store in self._stores if store.id == name.id and self._scope(store) is scope]
        before = [store for store in own if _end(self._statement(store)) <= _start(self._statement(name))]
        if not before:
            return None
        last = self._parents[id(max(before, key=_start))]
        if not isinstance(last, ast.Assign) or len(last.targets) != 1 or not isinstance(last.targets[0], ast.Name):
            return None
        around = list(self._around(name))
        holder, block = self._parents[id(last)], self._block(last)
        if not any(parent is holder and self._block_in(holder, node) == block for node, parent in around):
            return None
        loops = [parent for _, parent in around if isinstance(parent, _LOOPS) and parent is not scope]
        again = any(self._is_in(store, loop) and not self._is_in(last, loop) for store in own for loop in loops)
        return None if again else last.value

    def _around(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Each node with what it stands in, outwards to the function or module."""
        while id(node) in self._parents and not isinstance(node, _SCOPES):
            parent = self._parents[id(node)]
            yield node, parent
            node = parent

    def _scope(self, node: ast.AST) -> ast.AST | None:
        return next((parent for _, parent in self._around(node) if isinstance(parent, _SCOPES)), None)

    def _statement(self, node: ast.AST) -> Any:
        found = node
        while not isinstance(found, ast.stmt):
            found = self._parents[id(found)]
        return found

    def _block(self, statement: ast.AST) -> str:
        return self._block_in(self._parents[id(statement)], statement)

    @staticmethod
    def _block_in(holder: ast.AST, node: ast.AST) -> str:
        """Which list of statements of ``holder`` a node is in: "body", "orelse", ..."""
        return next((name for name, value in ast.iter_fields(holder) if isinstance(value, list) and node in value), "")

    def _is_in(self, node: ast.AST, holder: ast.AST) -> bool:
        return any(parent is holder for _, parent in self._around(node))


def _start(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset


def _is_stored(name: ast.Name) -> bool:
    return not isinstance(name.ctx, ast.Load)
