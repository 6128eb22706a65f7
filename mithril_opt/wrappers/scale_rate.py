"""A learning rate for each leaf, without an optimizer for each."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.asked import asked
from mithril_opt.core.fields import OF_A_SWEEP, Number, count, number, shown, static
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.patterns import checked, matching, unmatched
from mithril_opt.core.pytree import check_numbers, pytree, set_field, with_fields
from mithril_opt.core.schedule import Schedule, as_schedule, as_step
from mithril_opt.core.tree import describe_leaf, leaves_with_paths, listed
from mithril_opt.core.typing import Array, PyTree, Scalar
from mithril_opt.core.updates import plain
from mithril_opt.schedulers.numerics import integer_power
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.words import constant

FACTOR = Number(minimum=0)


@pytree
class ByPattern:
    """Factors by the pattern that a path matches."""

    patterns: Any = static()
    factors: Any

    def of(self, leaves: list[tuple[str, Any]]) -> list[Any]:
        """The factor of each leaf, a number or a schedule; None where no pattern matches.

        Raises:
            ValueError: a leaf matches two patterns, or no leaf matches a pattern.
        """
        named = list(enumerate(self.patterns))
        owners = [matching(named, path, leaf) for path, leaf in leaves]
        for (path, leaf), found in zip(leaves, owners, strict=True):
            if len(found) > 1:
                several = [self.patterns[i] for i in found]
                raise ValueError(
                    f"ScaleRate: {path!r} ({describe_leaf(leaf)}) matches the patterns {shown(several)}; it may match one"
                )
        idle = [pattern for i, pattern in named if [i] not in owners]
        if idle and leaves:
            raise ValueError(f"ScaleRate: no leaf matches {idle}; the paths are {listed(path for path, _ in leaves)}")
        return [self.factors[found[0]] if found else None for found in owners]

    def __repr__(self) -> str:
        return repr(dict(zip(self.patterns, self.factors, strict=True)))


@pytree
class ByFunction:
    """Factors by a function `(path, leaf) -> factor`."""

    function: Any = static()

    def of(self, leaves: list[tuple[str, Any]]) -> list[Any]:
        """The factor of each leaf."""
        return [
            _checked(f"the factor of {leaf[0]!r}", asked("ScaleRate: the function of factors", self.function, *leaf))
            for leaf in leaves
        ]

    def __repr__(self) -> str:
        return repr(self.function)


@pytree
class ByDepth:
    """γ^(L − depth): the factors that `layer_decay` makes."""

    depth_of: Any = static()
    num_layers: int = static()
    decay: Any = number(above=0, maximum=1, exact=True)

    def __post_init__(self) -> None:
        check_numbers(self, schedules=False)
        set_field(self, "num_layers", count(self.num_layers, "layer_decay: num_layers", minimum=0))
        if not callable(self.depth_of):
            raise TypeError(f"layer_decay: depth_of must be a function (path, leaf) -> depth, got {shown(self.depth_of)}")

    def of(self, leaves: list[tuple[str, Any]]) -> list[Array]:
        """The factor of each leaf.

        Raises:
            ValueError: a depth is no integer from 0 to L.
        """
        return [integer_power(self.decay, jnp.int32(self.num_layers - self._depth(*leaf))) for leaf in leaves]

    def _depth(self, path: str, leaf: Any) -> int:
        depth = asked("layer_decay: depth_of", self.depth_of, path, leaf)
        if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or not 0 <= depth <= self.num_layers:
            raise ValueError(
                f"layer_decay: the depth of {path!r} must be an integer from 0 to {self.num_layers}, got {shown(depth)}"
            )
        return int(depth)


@pytree
class ScaleRate(Wrapper):
    """An optimizer whose learning rate is multiplied, leaf by leaf: p ← p + f u for the updates u of the inner optimizer.

    A decay that is multiplied with the rate is, too. The moments are those of the inner optimizer; there is one of it, however
    many factors. Its `get_learning_rate` is without them; `explain` shows the rates with them. A schedule as a factor switches
    leaves on and off: `ConstantLR(1.0, factor=0.0, total_iters=1000)` holds them for 1000 updates, in which their moments
    move. µP (Yang et al. 2021) with Adam is `{"hidden/*": base_width / width}`.

    Args:
        optimizer: the inner optimizer.
        factors: numbers f ≥ 0 or schedules by pattern, as in the groups of a `MultiOptimizer`, but as a tuple where that has
            a list: `{"backbone/*": 0.1, ("*/bias", "*/scale"): 2.0}`; a leaf that matches none has the factor 1. Or a function
            `(path, leaf) -> factor`, or what `layer_decay` returned.

    Raises:
        ValueError: a factor is negative, or the state of `optimizer` counts on its very updates, as that of Schedule-Free,
            Prodigy and `Round` does; on `update`, a leaf matches two patterns, a pattern no leaf, or a factor is no scalar.
        TypeError: `optimizer` is no `Optimizer`, or `factors` is nothing of the kind.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ScaleRate
        >>> optimizer = ScaleRate(SGD(learning_rate=1.0), {"backbone/*": 0.125})
        >>> params = {"backbone": {"w": jnp.ones(1)}, "head": jnp.ones(1)}
        >>> optimizer.update(params, params, optimizer.init(params))[0]
        {'backbone': {'w': Array([0.875], dtype=float32)}, 'head': Array([0.], dtype=float32)}
    """

    optimizer: Optimizer
    factors: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_updates_may_change()
        set_field(self, "factors", _factors(self.factors))

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        return with_fields(super().at(step, schedules), factors=_at(self.factors, as_step(step)))

    def numbers(self, state: Any) -> Self:
        return with_fields(self, factors=_at(self.factors, as_step(self.clock(state))))

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        factors = _at(self.factors.of(leaves_with_paths(params)), as_step(self.clock(state)))
        updates, state = super().compute_updates(params, grads, state, **extra_args)
        structure = jax.tree.structure(params)
        pairs = zip(structure.flatten_up_to(updates), factors, strict=True)
        return structure.unflatten([_scaled(update, factor) for update, factor in pairs]), state

    def ready(self, state: Any, params: PyTree) -> Array:
        factors = _at(self.factors.of(leaves_with_paths(params)), as_step(self.clock(state)))
        finite = [jnp.all(jnp.isfinite(factor)) for factor in factors if factor is not None]
        return functools.reduce(jnp.logical_and, finite, super().ready(state, params))

    def unmatched(self, params: PyTree) -> list[Any]:
        patterns = getattr(self.factors, "patterns", ())
        return unmatched(patterns, leaves_with_paths(params)) + super().unmatched(params)

    def around(self, params: PyTree) -> list[tuple[Any, ...]]:
        factors = self.factors.of(leaves_with_paths(params))
        return [((self, factor), *inner) for factor, inner in zip(factors, self.optimizer.around(params), strict=True)]

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        factors = self.factors.of([(path, leaf) for path, leaf, _ in leaves])
        return "all its factors are 1" if all(factor is None or constant(factor) == 1 for factor in factors) else None


def layer_decay(depth_of: Callable[[str, Any], int], num_layers: int, decay: Scalar) -> Any:
    """Factors for `ScaleRate` that fall with the distance from the output: γ^(L − depth).

    That is the rate per layer with which pretrained transformers are fine-tuned (Clark et al. 2020, ELECTRA): what is near the
    input, and general, moves little.

    Args:
        depth_of: `(path, leaf) -> depth`, 0 for the embeddings, 1 … L − 1 for the layers, L for the head.
        num_layers: L, the depth of the head, also where these factors are for other leaves alone.
        decay: γ in (0, 1]; 0.65 to 0.9 are usual.

    Returns:
        Factors for `ScaleRate`.

    Raises:
        ValueError: `decay` is out of its range; on `update`, a depth is.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ScaleRate, layer_decay
        >>> depths = {"embed": 0, "block": 1, "head": 2}
        >>> factors = layer_decay(lambda path, leaf: depths[path], num_layers=2, decay=0.5)
        >>> optimizer = ScaleRate(SGD(learning_rate=1.0), factors)
        >>> params = dict.fromkeys(depths, jnp.float32(1.0))
        >>> [float(leaf) for leaf in optimizer.update(params, params, optimizer.init(params))[0].values()]
        [0.5, 0.75, 0.0]
    """
    return ByDepth(depth_of, num_layers, decay)


def _factors(given: Any) -> Any:
    """What was given as `factors`, as something that knows the factor of each leaf."""
    if isinstance(given, ByPattern | ByFunction | ByDepth):
        return given
    if isinstance(given, Mapping):
        patterns = tuple(checked("ScaleRate: a pattern", pattern) for pattern in given)
        return ByPattern(patterns, tuple(_checked(f"ScaleRate: factors[{key!r}]", value) for key, value in given.items()))
    if not callable(given):
        raise TypeError(
            f"ScaleRate: factors must be a dictionary by pattern or a function (path, leaf) -> factor, got {shown(given)}"
        )
    return ByFunction(given)


def _checked(where: str, factor: Any) -> Any:
    factor = FACTOR.check(as_schedule(factor), where, schedules=True)
    if isinstance(factor, Schedule) and factor.init() is not None:
        raise ValueError(f"{where} cannot follow a metric; only a number of a rule can")
    return factor


def _at(factors: Any, step: Array) -> Any:
    """`factors` with the values of their schedules."""
    is_schedule = lambda node: isinstance(node, Schedule)  # noqa: E731
    return jax.tree.map(lambda f: f.read(None, step) if is_schedule(f) else f, factors, is_leaf=is_schedule)


def _scaled(update: Any, factor: Any) -> Any:
    """`update` times `factor`; as it came without one."""
    if update is None or factor is None:
        return update
    if shape := jnp.shape(factor):
        raise ValueError(f"ScaleRate: a factor must be a scalar, got shape {shape}; {OF_A_SWEEP}")
    update = plain(update)
    with jax.numpy_dtype_promotion("standard"):
        return (factor * update).astype(update.dtype)
