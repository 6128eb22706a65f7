"""What an optimizer will do to every parameter, said before training starts."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.optimizer import Optimizer, check_optimizer
from mithril_opt.core.patterns import no_leaf
from mithril_opt.core.pytree import with_fields
from mithril_opt.core.state import is_state
from mithril_opt.core.table import Table
from mithril_opt.core.tree import leaves_with_paths, listed
from mithril_opt.core.typing import PyTree
from mithril_opt.mixed_precision.readings import Readings
from mithril_opt.tools.around import sentences, wrappers_without_effect
from mithril_opt.tools.plan import Leaf, Plan, the_leaves
from mithril_opt.tools.rates import warnings_of_rates
from mithril_opt.wrappers.round import Round
from mithril_opt.wrappers.schedule_free import ScheduleFree

COLUMNS = ("path", "shape", "dtype", "group", "optimizer", "rate at start", "peak", "end", "decay", "state bytes")


def explain(optimizer: Any, params: PyTree, total_steps: int) -> Table:
    """What `optimizer` will do to each parameter, with totals, and warnings of what is probably a mistake.

    The table prints itself. Below its rows it says what is around the rules: what clips which gradients, when a `Switch` is on
    and a factor of `ScaleRate` is 0, which parameters `eval_params` are; "update 40" is the one for which a schedule sees the
    step 40. It warns of a warm-up that is longer than the run, or that ends at another rate than what follows begins with; of a
    rate that ends in the first half of the run, that stays low from its first tenth on, or that rises again beyond the end of a
    cosine, as a schedule in epochs does; of a wrapper without effect, as a clip before a rule that takes the sign; of a decayed
    bias or norm scale, decay on an embedding, a `decay_mask` that takes no leaf, a momentum inside `ScheduleFree`, a rate that
    cannot move weights kept in bfloat16 or float16, and what a rule itself finds wrong with its rate (a `Lion` with Adam's
    rate); and if nothing trains.

    Args:
        optimizer: any optimizer, or a `MixedPrecisionTrainer`.
        params: tree of arrays, or of `jax.ShapeDtypeStruct`s, which leaves out the warnings that need values.
        total_steps: number of updates of the run, 1 ≤ n < 2³¹; windows, not micro-steps, under `Accumulate`.

    Returns:
        A table with a row for each floating or complex leaf, those of `Frozen` among them: path, shape, dtype, group,
        optimizer; learning rate at its first update, at its peak and at its last update, with its factor in `ScaleRate`;
        largest weight decay; and bytes of state. None where an optimizer does not tell, as one made by `from_optax`. The rest
        is its footer.

    Raises:
        ValueError: `total_steps` is no such number of updates, the groups of a `MultiOptimizer` do not fit the parameters, or a
            number of `optimizer` is an array of some shape, as in a sweep.
        TypeError: `optimizer` is none, or `params` are an optimizer or a state.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import EMA, AdamW, Clip, explain
        >>> optimizer = EMA(Clip(AdamW(), clip_norm=1.0))
        >>> explain(optimizer, {"w": jnp.ones((2, 2)), "bias": jnp.ones(2)}, total_steps=100)
        path  shape   dtype    group  optimizer  rate at start   peak    end  decay  state bytes
        bias  (2,)    float32  -      AdamW              0.001  0.001  0.001   0.01           24
        w     (2, 2)  float32  -      AdamW              0.001  0.001  0.001   0.01           48
        6 parameters, 72 bytes of state, 100 steps
        all parameters: gradients clipped to a norm of 1 together
        all parameters: eval_params are their moving average, decay 0.999
        warning: a bias or a norm scale should not decay: bias
    """
    _check_arguments(optimizer, params)
    if isinstance(total_steps, bool) or not isinstance(total_steps, int | np.integer) or not 1 <= total_steps < 2**31:
        raise ValueError(f"total_steps must be an integer from 1 to 2147483647, got {total_steps!r}")
    total_steps = int(total_steps)
    leaves = the_leaves(optimizer, params, total_steps)
    rows, known = [_row(leaf) for leaf in leaves], {leaf.path for leaf in leaves}
    count, size = sum(int(np.prod(row[1])) for row in rows), sum(leaf.state_bytes for leaf in leaves)
    others = [path for path, _ in leaves_with_paths(params) if path not in known]
    footer = [f"{count:,} parameters, {size:,} bytes of state, {total_steps:,} steps"]
    footer += [f"not trained: {listed(others)}"] if others else []
    warnings = [f"warning: {text}" for text in _warnings(leaves)]
    misspelt = no_leaf(optimizer.unmatched(params))
    return Table(COLUMNS, tuple(rows), (*footer, *sentences(leaves), *warnings, *misspelt))


def _check_arguments(optimizer: Any, params: PyTree) -> None:
    takes = "explain takes (optimizer, params, total_steps)"
    if _is_optimizer(params):
        raise TypeError(f"{takes}, but its second argument is an optimizer, {type(params).__name__}")
    if any(map(is_state, jax.tree.leaves(params, is_leaf=is_state))):
        raise TypeError(f"{takes}, but its second argument is, or holds, a state, and no parameters")
    if not _is_optimizer(optimizer):
        check_optimizer("explain: optimizer", optimizer)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Optimizer | Readings)


def _row(leaf: Leaf) -> tuple[Any, ...]:
    rates = (None, None, None)
    if leaf.rates is not None:
        made = leaf.rates[:-1] if leaf.plan.updates else np.zeros(1)
        rates = float(made[0]), float(made.max()), float(made[-1])
    array, plan = leaf.array, leaf.plan
    what = (leaf.path, jnp.shape(array), str(jnp.result_type(array)), plan.group or "-", type(plan.owner).__name__)
    return (*what, *rates, _decay(leaf), leaf.state_bytes)


def _decay(leaf: Leaf) -> float | None:
    decays = leaf.plan.owner.decays(leaf.path, leaf.array)
    return None if decays is None else max(map(leaf.plan.largest, decays), default=0.0)


def _warnings(leaves: list[Leaf]) -> Iterator[str]:
    for plan in {id(leaf.plan): leaf.plan for leaf in leaves}.values():
        yield from warnings_of_rates(plan)
    yield from wrappers_without_effect(leaves)
    yield from _masks_without_effect(leaves)
    if not any(leaf.trains for leaf in leaves):
        yield "nothing trains"
    yield from _grouped(pair for leaf in leaves for pair in _warnings_of_leaf(leaf, any(leaf.trains for leaf in leaves)))


def _masks_without_effect(leaves: list[Leaf]) -> Iterator[str]:
    """Warnings of masks that take no leaf, so that a decay that was given never acts."""
    masked = [leaf for leaf in leaves if getattr(leaf.plan.owner, "decay_mask", None) is not None]
    for mask in {leaf.plan.owner.decay_mask: None for leaf in masked}:
        own = [leaf for leaf in masked if leaf.plan.owner.decay_mask == mask]
        bare = [with_fields(leaf.plan.owner, decay_mask=None).decays(leaf.path, leaf.array) for leaf in own]
        if any(bare) and not any(leaf.plan.owner.decays(leaf.path, leaf.array) for leaf in own):
            yield f"nothing decays, since the decay_mask takes none of {listed(leaf.path for leaf in own)}"


def _warnings_of_leaf(leaf: Leaf, others_train: bool) -> Iterator[tuple[str, str]]:
    """Pairs of a warning and the path that it is about."""
    path, array, last = leaf.path.lower(), leaf.array, leaf.path.lower().rpartition("/")[2]
    if others_train and not leaf.trains and leaf.plan.owner.window_length is not None:
        yield "the rate is 0 throughout the run", leaf.path
    if _decay(leaf):
        if "embed" in path:
            yield "decay on an embedding makes the rows that are rarely used fade", leaf.path
        elif jnp.ndim(array) < 2 or last in ("bias", "scale", "offset"):
            yield "a bias or a norm scale should not decay", leaf.path
    if any(isinstance(wrapper, ScheduleFree) for wrapper, _ in leaf.around) and _has_momentum(leaf.plan):
        yield f"ScheduleFree is in the place of a momentum, and {type(leaf.plan.owner).__name__} has one", leaf.path
    rate = 0.0 if leaf.rates is None else float(leaf.rates.max())
    stored = any(isinstance(wrapper, Round) for wrapper, _ in leaf.around)
    if leaf.plan.owner.unit_steps and rate and not stored and _too_large_for(rate, array):
        why = f"a rate of at most {rate:.2g} is rounded away in {array.dtype} weights of this size"
        yield f"{why}; keep them in float32, or as bfloat16 in Round", leaf.path


def _has_momentum(plan: Plan) -> bool:
    numbers = (getattr(plan.owner, name, None) for name in ("momentum", "beta", "beta1"))
    return any(number is not None and plan.largest(number) > 0 for number in numbers)


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
