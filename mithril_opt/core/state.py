"""The state of an optimizer, and whether it belongs to the optimizer that is given it."""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.typing import Array, PyTree

T = TypeVar("T")

# Why an update was skipped: larger numbers outweigh smaller ones within a window.
BAD_INPUT, OVERFLOW = 1, 2


def exported(cls: type[T]) -> type[T]:
    """Make `jax.export` know `cls`, so that a step with such slots can be serialized; a decorator.

    Args:
        cls: a NamedTuple, of slots or of a state; no other of that name.

    Example:
        >>> from typing import NamedTuple
        >>> import jax
        >>> from mithril_opt import exported
        >>> @exported
        ... class SignumSlots(NamedTuple):
        ...     mu: jax.Array
        >>> SignumSlots(mu=1.0)
        SignumSlots(mu=1.0)
    """
    jax.export.register_namedtuple_serialization(cls, serialized_name=f"mithril_opt.{cls.__name__}")
    return cls


class Window(NamedTuple):
    """A series of updates that are committed together.

    Attributes:
        closes: boolean scalar, whether the next update is the last of the series.
        verdict: int32 scalar, why an update of the series was skipped; 0 if none was.
    """

    closes: Array
    verdict: Array

    @property
    def applies(self) -> Array:
        """Whether the next update moves the parameters: it is the last of a series that nothing has spoiled."""
        return self.closes & (self.verdict == 0)


@exported
class OptState(NamedTuple):
    """What the next update needs.

    Attributes:
        step: int32 scalar, the number of applied updates; it saturates.
        slots: what the rule keeps per parameter: a few trees shaped like the parameters, `slots.mu["decoder"]["w"]`.
        schedules: the memories of metric-driven schedules, by field name; usually empty.
        shared: what a rule with sums over the whole tree keeps besides; None for the others.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD
        >>> SGD(momentum=0.9).init({"w": jnp.ones(2)}).slots
        SGDSlots(trace={'w': Array([0., 0.], dtype=float32)}, started=None)
    """

    step: Array
    slots: PyTree
    schedules: PyTree
    shared: PyTree = None


@exported
class Seen(NamedTuple):
    """What is known of the gradients of an update before it is made.

    Attributes:
        norm: float32 scalar, their norm before clipping.
        clipped: boolean scalar, whether they were clipped by it.
        bad_leaf: int32 scalar, the position of the first leaf whose gradient is not finite; −1 if all are.
    """

    norm: Array
    clipped: Array
    bad_leaf: Array

    @classmethod
    def nothing(cls) -> "Seen":
        """Before anything is known."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), bool), jnp.full((), -1, jnp.int32))


# The fields of `Counterpart` for β₁, β₂ and ε as every Adam of PyTorch has them.
BETAS_AND_EPS = MappingProxyType(
    {"beta1": ("betas", operator.itemgetter(0)), "beta2": ("betas", operator.itemgetter(1)), "epsilon": "eps"}
)


class Counterpart(NamedTuple):
    """What another library calls a rule and its state.

    Attributes:
        name: of the rule in PyTorch, of the NamedTuple that holds the slots in optax.
        slots: their names of our slots.
        settings: settings by which the parameter groups of PyTorch's rule are known.
        values: what some of them must be where a group has them: AdamW is an Adam whose "decoupled_weight_decay" is True.
        foreign: settings of other rules of PyTorch whose slots have the same names.
        fields: by our field, the setting of PyTorch's groups that is the same number or switch, or its name and a function that
            makes of PyTorch's value ours. The learning rate and the weight decay are known.
        reduced: `(path, leaf) -> {slot: axis}`, the axes of a leaf that its slots lack and PyTorch keeps with size 1.
        counts: whether PyTorch counts its updates.
        squares: whether it keeps squares, which are not those of the modulus for a complex parameter.
    """

    name: str
    slots: dict[str, str]
    settings: frozenset[str] = frozenset()
    values: Mapping[str, Any] = MappingProxyType({})
    foreign: frozenset[str] = frozenset()
    fields: Mapping[str, str | tuple[str, Callable[[Any], Any]]] = MappingProxyType({})
    reduced: Callable[[str, Any], dict[str, int]] = lambda path, leaf: {}
    counts: bool = True
    squares: bool = True


def misuse(optimizer: Any, grads: PyTree, state: Any, extra_args: Any = ()) -> Exception:
    """What is wrong with the arguments of `update`, apart from the trees."""
    name = type(optimizer).__name__
    if isinstance(grads, optimizer.state_type):
        return ValueError(
            f"{name}.update takes (params, grads, state), but its second argument is a state: this looks like optax's order "
            "(grads, state, params)"
        )
    if not isinstance(state, optimizer.state_type):
        return ValueError(f"{name}.update takes the state that init returned as its third argument, got {type(state).__name__}")
    return TypeError(f"{name}.update takes no further arguments, as optimizers made by from_optax do; got {sorted(extra_args)}")


def checked_step(step: Any) -> int:
    """`step`, a count of updates given by hand; a ValueError unless it is one that int32 holds."""
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or not 0 <= step < 2**31:
        raise ValueError(f"step must be a number of updates, an integer from 0 to 2147483647, got {step!r}")
    return int(step)


def check_state(optimizer: Any, state: Any) -> None:
    """Raise a ValueError unless `state` is of the type that `optimizer.init` returns."""
    if not isinstance(state, optimizer.state_type):
        name, hint = type(optimizer).__name__, ""
        if hasattr(state, "loss_scale"):
            hint = "; of a trainer's state it is the field `optimizer`: state.optimizer"
        raise ValueError(f"{name} takes the state that init returned, got {type(state).__name__}{hint}")


def is_state(node: Any) -> bool:
    """Whether `node` is the state of an optimizer, of a wrapper or of a trainer."""
    return isinstance(node, OptState) or "optimizer" in getattr(node, "_fields", ())
