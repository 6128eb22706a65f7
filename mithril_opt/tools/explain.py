"""What an optimizer will do to every parameter, said before training starts."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.slots import state_bytes
from mithril_opt.core.table import Table
from mithril_opt.core.tree import leaves_with_paths, listed
from mithril_opt.core.typing import PyTree

COLUMNS = ("path", "shape", "dtype", "group", "optimizer", "rate at start", "peak", "end", "decay", "state bytes")
# A longer run is looked at in so many places.
MOST_STEPS = 100_000


class Plan(NamedTuple):
    """What an optimizer does over the run, the same for all its leaves.

    Attributes:
        group: its name in a `MultiOptimizer`, "a/b" for a nested one; empty without one.
        owner: the optimizer.
        rates: its learning rate at every step of the run and at the one after; None if it keeps that to itself.
        decay: the largest value in the run of a weight decay, a number or a schedule.
    """

    group: str
    owner: Any
    rates: np.ndarray | None
    decay: Callable[[Any], float]


def explain(optimizer: Any, params: PyTree, total_steps: int) -> Table:
    """Print and return what `optimizer` will do to each parameter, with totals, and warn of what is surely wrong.

    It warns of a warm-up longer than the run, a decayed bias or norm scale, decay on an embedding, a rate that cannot move
    weights kept in bfloat16 or float16, and what a rule itself finds wrong with its rate (a `Lion` with Adam's rate).

    Args:
        optimizer: any optimizer, or a `MixedPrecisionTrainer`.
        params: tree of arrays, or of `jax.ShapeDtypeStruct`s, which leaves out the warnings that need values.
        total_steps: number of updates of the run, 1 ≤ n < 2³¹; windows, not micro-steps, under `Accumulate`.

    Returns:
        A table with a row for each leaf that trains: path, shape, dtype, group, optimizer, learning rate at the first step, at
        its peak and at the last step, largest weight decay, and bytes of state; None where an optimizer does not tell, as one
        made by `from_optax`. Totals, what does not train, and warnings are its footer.

    Raises:
        ValueError: `total_steps` is no such number of updates, or the groups of a `MultiOptimizer` do not fit the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdamW, explain
        >>> table = explain(AdamW(), {"w": jnp.ones((2, 2)), "bias": jnp.ones(2)}, total_steps=100)
        path  shape   dtype    group  optimizer  rate at start   peak    end  decay  state bytes
        bias  (2,)    float32  -      AdamW              0.001  0.001  0.001   0.01           16
        w     (2, 2)  float32  -      AdamW              0.001  0.001  0.001   0.01           32
        6 parameters, 48 bytes of state, 100 steps
        warning: a bias or a norm scale should not decay: bias
    """
    if not isinstance(total_steps, int) or not 1 <= total_steps < 2**31:
        raise ValueError(f"total_steps must be an integer from 1 to 2147483647, got {total_steps!r}")
    leaves, sizes = leaves_with_paths(params), state_bytes(optimizer, params)
    plans = _plans(optimizer, params, total_steps)
    rows = [_row(*leaves[i], plans[i], sizes[i]) for i in sorted(plans)]
    texts = [text for plan in {id(plan): plan for plan in plans.values()}.values() for text in _warnings_of_plan(plan)]
    texts += _grouped(pair for i in sorted(plans) for pair in _warnings_of_leaf(*leaves[i], plans[i]))
    idle = [path for i, (path, _) in enumerate(leaves) if i not in plans]
    footer = [f"{sum(int(np.prod(row[1])) for row in rows):,} parameters, {sum(sizes):,} bytes of state, {total_steps:,} steps"]
    footer += [f"not trained: {listed(idle)}"] if idle else []
    table = Table(COLUMNS, tuple(rows), (*footer, *(f"warning: {text}" for text in texts)))
    print(table)
    return table


def _plans(optimizer: Any, params: PyTree, total_steps: int) -> dict[int, Plan]:
    """The plan of the innermost optimizer that each leaf belongs to, by the position of the leaf."""
    plans: dict[tuple[str, int], Plan] = {}
    found = {}
    for i, rule in enumerate(optimizer.rules(params)):
        if rule is not None:
            group, owner = rule
            key = group, id(owner)
            plans[key] = plans.get(key) or Plan(group, owner, *_over_the_run(owner, total_steps))
            found[i] = plans[key]
    return found


def _over_the_run(owner: Any, total_steps: int) -> tuple[np.ndarray | None, Callable[[Any], float]]:
    """The learning rate at the steps of the run and at the one after, and the largest value of a number in the run."""
    steps = np.unique(np.linspace(0, total_steps - 1, min(total_steps, MOST_STEPS)).astype(np.int64))
    largest = functools.cache(lambda number: float(_values(number, steps).max()))
    return None if owner.rate is None else _values(owner.rate, np.append(steps, total_steps)), largest


def _values(number: Any, steps: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(number)(steps) if callable(number) else np.full(len(steps), number))


def _row(path: str, leaf: Any, plan: Plan, size: int) -> tuple[Any, ...]:
    rates = (None, None, None)
    if plan.rates is not None:
        rates = float(plan.rates[0]), float(plan.rates[:-1].max()), float(plan.rates[-2])
    dtype, name = str(jnp.result_type(leaf)), type(plan.owner).__name__
    return (path, jnp.shape(leaf), dtype, plan.group or "-", name, *rates, _decay(path, leaf, plan), size)


def _decay(path: str, leaf: Any, plan: Plan) -> float | None:
    decays = plan.owner.decays(path, leaf)
    return None if decays is None else max(map(plan.decay, decays), default=0.0)


def _warnings_of_plan(plan: Plan) -> Iterator[str]:
    if plan.rates is None:
        return
    if plan.rates[-1] > plan.rates[:-1].max():
        whose = f"the rate of group {plan.group!r}" if plan.group else "the rate"
        yield f"{whose} still rises when the run ends: its warm-up is longer than the run"
    where = f"group {plan.group!r}: " if plan.group else ""
    yield from (where + text for text in plan.owner.lints(float(plan.rates[:-1].max())))


def _warnings_of_leaf(path: str, leaf: Any, plan: Plan) -> Iterator[tuple[str, str]]:
    """Pairs of a warning and the path that it is about."""
    last = path.lower().rpartition("/")[2]
    if _decay(path, leaf, plan):
        if "embed" in path.lower():
            yield "decay on an embedding makes the rows that are rarely used fade", path
        elif jnp.ndim(leaf) < 2 or last in ("bias", "scale", "offset"):
            yield "a bias or a norm scale should not decay", path
    rate = 0.0 if plan.rates is None else float(plan.rates.max())
    if plan.owner.unit_steps and rate and _too_large_for(rate, leaf):
        dtype = str(leaf.dtype)
        yield f"a rate of at most {rate:.2g} is rounded away in {dtype} weights of this size; keep them in float32", path


def _too_large_for(rate: float, leaf: Any) -> bool:
    """Whether a typical element of `leaf` stays the same when `rate` is subtracted, about what these rules subtract."""
    dtype = jnp.result_type(leaf)
    if not isinstance(leaf, jax.Array | np.ndarray) or jnp.iscomplexobj(leaf) or jnp.finfo(dtype).bits >= 32:
        return False
    size = float(jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(leaf, jnp.float32))))) if leaf.size else 0.0
    return rate < size * float(jnp.finfo(dtype).eps) / 4  # half a unit in the last place, or less


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each warning, with all its paths."""
    paths: dict[str, list[str]] = {}
    for text, path in pairs:
        paths.setdefault(text, []).append(path)
    return [f"{text}: {listed(those)}" for text, those in paths.items()]
