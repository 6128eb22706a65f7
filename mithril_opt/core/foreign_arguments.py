"""Arguments written the way optax has them, trees of labels and of booleans: they get the line to write."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from mithril_opt.core.fields import shown
from mithril_opt.core.tree import leaves_with_paths

MASK = "decay_mask=lambda path, leaf: leaf.ndim > 1"
# Of a line that is still read.
LONGEST = 400


def refuse_labels(names: Iterable[str], groups: Any) -> None:
    """Raise a TypeError with the line to write if `groups`, of a `MultiOptimizer` with groups called `names`, are the labels of
    `optax.partition`, a tree of them or a function of the parameters."""
    names = list(names)
    if callable(groups):
        raise TypeError(
            "MultiOptimizer: groups say for each name which leaves it takes, where optax has a function of all parameters; "
            f"write {_by_predicates(names)}"
        )
    of_names = isinstance(groups, Mapping) and set(groups) == set(names)
    if isinstance(groups, tuple) or (of_names and not any(isinstance(own, Mapping) for own in groups.values())):
        return
    labels = leaves_with_paths(groups)
    if labels and all(isinstance(label, str) and label in names for _, label in labels):
        line = _by_paths(names, labels)
        raise TypeError(
            "MultiOptimizer: groups say for each name which paths it takes, where optax has a tree of names; write "
            f"{line if len(line) <= LONGEST else _by_predicates(names)}"
        )


def _by_paths(names: list[str], labels: list[tuple[str, str]]) -> str:
    """The groups of a tree of labels, each for a leaf or for all below it."""
    paths = {name: "|".join(re.escape(path) for path, label in labels if label == name) for name in names}
    groups = [f"{name!r}: re.compile({f'^({own})(/|$)'!r})" for name, own in paths.items()]
    return f"groups={{{', '.join(groups)}}}"


def _by_predicates(names: list[str]) -> str:
    predicates = [f"{name!r}: lambda path, leaf: leaf.ndim > 1" for name in names[:-1]]
    return f"groups={{{', '.join([*predicates, f'{names[-1]!r}: ...'])}}}" if names else "groups={...}"


def refuse_mask(owner: str, mask: Any) -> None:
    """Raise a TypeError with the line to write if `mask` is none of ours: optax has a tree of booleans, or a function of all
    parameters that returns one."""
    if not (mask is None or callable(mask)):
        hint = f"; for a tree of booleans, which optax has, write {MASK}" if _is_tree_of_booleans(mask) else ""
        raise TypeError(f"{owner}: decay_mask must be a function (path, leaf) -> bool, got {shown(mask)}{hint}")
    if callable(mask) and not _takes_two(mask):
        raise TypeError(
            f"{owner}: decay_mask must be a function (path, leaf) -> bool, but {shown(mask)} takes no two arguments; for a "
            f"function of all parameters, which optax has, write {MASK}"
        )


def _is_tree_of_booleans(mask: Any) -> bool:
    leaves = jax.tree.leaves(mask)
    return bool(leaves) and all(isinstance(leaf, bool) for leaf in leaves)


def _takes_two(function: Any) -> bool:
    try:
        inspect.signature(function).bind("path", "leaf")
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return True
    return True
