"""What wrappers say of themselves: words for numbers, and reasons."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from mithril_opt.core.fields import shown
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.schedule import Schedule

# A longer run is looked at in so many places.
MOST_STEPS = 100_000


def evenly(total_steps: int) -> np.ndarray:
    """The steps of a run, or of a longer one as many as are looked at, the first and the last among them."""
    return np.unique(np.linspace(0, total_steps - 1, min(total_steps, MOST_STEPS)).astype(np.int64))


Holds: TypeAlias = Callable[[np.ndarray], np.ndarray]


def first_steps(holds: Holds, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The first steps after `low` at which `holds` says what it says at `high`, if it changes once between them."""
    there = holds(high) if len(high) else high
    while np.any(high - low > 1):
        middle = (low + high) // 2
        same = holds(middle) == there
        low, high = np.where(same, low, middle), np.where(same, middle, high)
    return high


def counted(holds: Holds, updates: np.ndarray) -> np.ndarray:
    """At how many of the first `updates`, increasing numbers, it holds: exactly, if no change is undone between the places
    of a long run that are looked at."""
    steps = evenly(int(updates[-1]))
    held = holds(steps) if len(steps) else np.zeros(0, bool)
    changes = held[1:] != held[:-1]
    edges = np.concatenate([[0], first_steps(holds, steps[:-1][changes], steps[1:][changes]), updates[-1:]])
    lengths = np.diff(edges) * np.append(held[:1], held[1:][changes])
    return np.interp(updates, edges, np.append(0, np.cumsum(lengths))).astype(np.int64)


def in_digits(number: Any) -> str:
    """A number in a few digits, a schedule as it prints."""
    return shown(number) if isinstance(number, Schedule) else f"{float(number):g}"


def constant(number: Any) -> float | None:
    """The value of a number; None for a schedule."""
    return None if isinstance(number, Schedule) else float(number)


def scale_does_not_matter(leaves: list[tuple[str, Any, Optimizer]]) -> str | None:
    """Why it is in vain to make gradients smaller; None if it is not."""
    if not all(rule.scale_free for _, _, rule in leaves):
        return None
    rules = ", ".join(sorted({type(rule).__name__ for _, _, rule in leaves}))
    return f"the steps of {rules} hardly depend on the size of a gradient"


def of_a_window(optimizer: Optimizer) -> str:
    """That what happens to gradients outside of `optimizer` happens to each of a window; nothing if it does not accumulate."""
    try:
        every = optimizer.window_length
    except ValueError:  # its groups have windows of different lengths
        return ", each of a window by itself"
    return "" if every in (None, 1) else f", each of the {every} of a window by itself"
