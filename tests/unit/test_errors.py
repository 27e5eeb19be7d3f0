from __future__ import annotations

import builtins
import inspect
import re

from memfit import errors

# An optional drawing of branches, the name, optionally the built-in type that it is as well.
LINE = re.compile(r"^(?P<branch>[│├└─ ]*)(?P<name>\w+Error)(?: \((?P<also>\w+)\))?(?:\s+\S.*)?$")


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Each name of the tree at the top of the file: what it hangs from, and the built-in type in brackets."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["branch"])
        above = [(other, name) for other, name in above if other < depth]
        tree[match["name"]] = (above[-1][1] if above else None, match["also"])
        above.append((depth, match["name"]))
    return tree


def defined() -> dict[str, tuple[str | None, str | None]]:
    """The same from the classes."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        bases = [base for base in kind.__bases__ if base is not Exception]
        ours = [base.__name__ for base in bases if base.__module__ == errors.__name__]
        others = [base.__name__ for base in bases if base.__module__ == builtins.__name__]
        tree[name] = (ours[0] if ours else None, others[0] if others else None)
    return tree


def test_tree_at_the_top_is_the_tree_of_the_classes() -> None:
    assert "BudgetError" in drawn()
    assert drawn() == defined()


def test_everything_is_a_memfit_error_and_says_what_it_is() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(kind, errors.MemfitError), name
        assert kind.__doc__, name
