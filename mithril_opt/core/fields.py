"""What the fields of an optimizer or a schedule may hold: `static`, `number`, `decay_rate`, `steps`."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.foreign_values import hint_for_number
from mithril_opt.core.typing import Axes, Scalar

if TYPE_CHECKING:
    Given: TypeAlias = float | jax.Array | np.ndarray | np.number | Callable[[Any], Any] | None

    class ScalarOrSchedule:
        """A field given as a number, a `Schedule` or a plain function of the step; None switches an optional feature off.
        Inside a rule it is the number of the update being made."""

        def __get__(self, instance: Any, owner: Any) -> Any: ...
        def __set__(self, instance: Any, value: Given) -> None: ...

    class DecayRateOrSchedule:
        """The same for a decay rate, which is a `DecayRate` inside a rule."""

        def __get__(self, instance: Any, owner: Any) -> DecayRate: ...
        def __set__(self, instance: Any, value: Given | DecayRate) -> None: ...

    class AxesOrFunction:
        """A field given as axes, or as a function `(path, leaf) -> axes`. Inside a rule it is the axes of the leaf."""

        def __get__(self, instance: Any, owner: Any) -> Any: ...
        def __set__(self, instance: Any, value: Axes | Callable[[str, Any], Axes]) -> None: ...

    class Factor:
        """A field given as a number, which is kept as a `DecayRate`."""

        def __get__(self, instance: Any, owner: Any) -> DecayRate: ...
        def __set__(self, instance: Any, value: Scalar | DecayRate) -> None: ...

else:
    ScalarOrSchedule = DecayRateOrSchedule = AxesOrFunction = Factor = Any


# Where a number is an array, as in the optimizers that `jax.vmap` made of one.
OF_A_SWEEP = "jax.vmap over the optimizer tries several at once, jax.tree.map(lambda a: a[i], optimizers) takes one out"

# What float32 holds.
LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Number:
    """What a number may be. Only Python and NumPy numbers are checked: an array may be traced and has no value then.

    Attributes:
        minimum, maximum: the closed bounds.
        above, below: the open bounds.
        integer: a count of steps.
        off: zero means that a feature is switched off; it is stored as None, which is structure and survives `jax.jit`.
        optional: None means that the number is not given.
        exact: stored as a `DecayRate`, which a jit boundary does not round.
        infinite: infinity is allowed, too.
        masked: switched off at the leaves that the rule's `decay_mask` leaves out.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    integer: bool = False
    off: bool = False
    optional: bool = False
    exact: bool = False
    infinite: bool = False
    masked: bool = False

    def check(self, value: Any, where: str, schedules: bool = False) -> Any:
        """`value` as it is stored; a ValueError or TypeError that begins with `where` if it may not be stored there.

        Args:
            schedules: whether a function of the step may stand for the number.
        """
        if value is None and (self.off or self.optional):
            return None
        if schedules and callable(value):
            return value
        number = _python_number(value)
        if hasattr(number, "dtype"):
            return DecayRate(number, getattr(value, "rest", None)) if self.exact else number
        self._check_value(number, where, " or a schedule" if schedules else "")
        if self.off and number == 0:
            return None
        return int(number) if self.integer else DecayRate(float(number)) if self.exact else float(number)

    def _check_value(self, value: Any, where: str, alternative: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = f"{shown(value)} of type {type(value).__name__}"
            raise TypeError(f"{where} must be {self.expected}{alternative}, got {found}{hint_for_number(value)}")
        if not (
            self.minimum <= value <= self.maximum
            and self.above < value
            and (value < self.below or self.infinite)
            and self._fits(value)
        ):
            raise ValueError(f"{where} must be {self.expected}{alternative}, got {shown(value)}")

    def _fits(self, value: float) -> bool:
        if self.integer:
            return abs(value) < 2**31 and value == int(value)
        return self.infinite or abs(value) <= LARGEST

    @property
    def expected(self) -> str:
        """What is expected, in words."""
        if self.integer:
            return f"an integer of at least {self.minimum}"
        lowest = f"[{self.minimum:g}" if self.minimum > self.above else f"({self.above:g}"
        highest = f"{self.maximum:g}]" if self.maximum < self.below or self.infinite else f"{self.below:g})"
        interval = f"{lowest}, {highest}"
        return f"a number in {interval}" if interval != "(-inf, inf)" else "a finite number"


def count(value: Any, where: str, minimum: int = 1) -> int:
    """`value`, a count that is part of the structure; a ValueError that begins with `where` if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{where} must be an integer of at least {minimum}, got {shown(value)}")
    return int(value)


def shown(value: Any) -> str:
    """`value` for a message: its repr without addresses and with the ends of arrays, the beginning of it if it is long."""
    with np.printoptions(threshold=8, edgeitems=1):
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _python_number(value: Any) -> Any:
    """What NumPy and a `DecayRate` know of a number; any other array as it is."""
    value = value.value if isinstance(value, DecayRate) else value
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


@dataclasses.dataclass(frozen=True)
class Increasing:
    """A sequence of numbers, each at least as large as the one before; stored as a tuple."""

    number: Number

    def check(self, value: Any, where: str, schedules: bool = False) -> tuple[Any, ...]:
        """`value` as a tuple of checked numbers; those that may be traced are not compared."""
        if not (isinstance(value, Sequence) or np.ndim(value) == 1) or isinstance(value, str):
            raise TypeError(f"{where} must be a sequence of integers, got {value!r} of type {type(value).__name__}")
        checked = tuple(self.number.check(item, f"{where}[{i}]") for i, item in enumerate(value))
        known = [item for item in checked if isinstance(item, int)]
        if sorted(known) != known:
            raise ValueError(f"{where} must be increasing, got {list(checked)!r}")
        return checked


def rule_of(field: dataclasses.Field[Any]) -> Number | Increasing | None:
    """What the numbers in `field` may be; None for a field that holds something else."""
    return field.metadata.get("rule")


def is_static(field: dataclasses.Field[Any]) -> bool:
    """Whether `field` is part of the structure."""
    return field.metadata.get("static", False)


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that is part of the structure: a switch, a function, a pattern. Another value of it compiles anew.

    Args:
        default: what the field holds if nothing is given; must be hashable, as every value of the field.

    Example:
        >>> import jax
        >>> from mithril_opt import pytree, static
        >>> @pytree
        ... class Power:
        ...     base: float
        ...     exponent: int = static(default=2)
        >>> jax.tree.leaves(Power(1.5))
        [1.5]
    """
    return dataclasses.field(default=default, metadata={"static": True})


def number(
    *,
    default: Any = dataclasses.MISSING,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    off: bool = False,
    optional: bool = False,
    exact: bool = False,
    infinite: bool = False,
    masked: bool = False,
) -> Any:
    """A field that holds a real number, in a range that a Python number is checked against; in an optimizer also a schedule.

    Args:
        default: what the field holds if nothing is given.
        minimum: the smallest number allowed.
        maximum: the largest number allowed.
        above: the number must be larger.
        below: the number must be smaller.
        off: whether a Python zero switches the feature off. It is then stored as None, which survives `jax.jit`: `if
            self.momentum is not None` decides in the rule.
        optional: whether None is allowed, for a number that is not given.
        exact: whether it is kept as a `DecayRate`, of which a jit boundary loses nothing.
        infinite: whether infinity is allowed, for a bound that then bounds nothing.
        masked: whether this is a weight decay that `decay_mask` switches off, leaf by leaf: None there, like an `off`.

    Example:
        >>> from mithril_opt import number, pytree, LeafOptimizer
        >>> @pytree
        ... class Descent(LeafOptimizer):
        ...     learning_rate: float = number(default=0.1, minimum=0)
        ...     def init_leaf(self, param):
        ...         return None
        ...     def update_leaf(self, param, grad, slots, t):
        ...         return self.learning_rate * grad, slots
        >>> Descent(learning_rate=-1.0)
        Traceback (most recent call last):
        ValueError: Descent: learning_rate must be a number in [0, inf) or a schedule, got -1.0
        To maximise, negate the loss.
    """
    rule = Number(minimum, maximum, above, below, off=off, optional=optional, exact=exact, infinite=infinite, masked=masked)
    return dataclasses.field(default=default, metadata={"rule": rule})


def decay_rate(
    *,
    default: Any = dataclasses.MISSING,
    minimum: float = 0,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = 1,
    off: bool = False,
    optional: bool = False,
) -> Any:
    """A field that holds the decay rate β of a moving average, or its schedule. Inside a rule it is a `DecayRate`:
    `self.beta1.value` is β, `self.beta1.complement` 1 − β, `self.beta1.one_minus_power(t)` 1 − βᵗ, all to the last digit.

    Args:
        default: what the field holds if nothing is given.
        minimum: the smallest rate allowed.
        maximum: the largest rate allowed.
        above: the rate must be larger.
        below: the rate must be smaller.
        off: whether a Python zero, which averages nothing, is stored as None, so that the rule can do without the slot.
        optional: whether None is allowed, for a rate that is not given.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import LeafOptimizer, decay_rate, ema, pytree, zeros
        >>> @pytree
        ... class Momentum(LeafOptimizer):
        ...     learning_rate: float = 0.5
        ...     beta: float = decay_rate(default=0.75)
        ...     def init_leaf(self, param):
        ...         return zeros(param)
        ...     def update_leaf(self, param, grad, slots, t):
        ...         m = ema(self.beta, slots, grad)
        ...         return self.learning_rate * m / self.beta.one_minus_power(t), m
        >>> optimizer, params = Momentum(), jnp.array([1.0])
        >>> optimizer.update(params, jnp.array([1.0]), optimizer.init(params))[0]
        Array([0.5], dtype=float32)
    """
    rule = Number(minimum, maximum, above, below, off=off, optional=optional, exact=True)
    return dataclasses.field(default=default, metadata={"rule": rule})


def same_as(cls: Any, name: str, *, default: Any) -> Any:
    """A field that may hold what the field `name` of `cls` may hold."""
    metadata = next(field.metadata for field in dataclasses.fields(cls) if field.name == name)
    return dataclasses.field(default=default, metadata=metadata)


def steps(*, default: Any = dataclasses.MISSING, minimum: int = 1, optional: bool = False, increasing: bool = False) -> Any:
    """A field that counts steps: an integer of at least `minimum`; with `increasing=True` a sequence of such integers, each
    at least as large as the one before, stored as a tuple."""
    rule = Number(minimum, integer=True, optional=optional)
    return dataclasses.field(default=default, metadata={"rule": Increasing(rule) if increasing else rule})
