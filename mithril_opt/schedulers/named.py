"""A schedule by its name, for runs that a configuration file drives."""

import enum
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mithril_opt.core.foreign_calls import no_optimizer
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers import (
    compose,
    cosine,
    cyclic,
    decay,
    function,
    plateau,
    stable,
    transformers,
    transformers_cosine,
    warmup,
)


class SchedulerType(enum.StrEnum):
    """The names of the schedules of transformers.

    Example:
        >>> from mithril_opt import SchedulerType
        >>> SchedulerType("cosine") is SchedulerType.COSINE
        True
    """

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"


class Row(NamedTuple):
    """How a schedule is made from the arguments of `get_scheduler`: which of its own arguments they are, where it has such."""

    make: Callable[..., Schedule]
    rate: str | None = "base_lr"
    warmup: str | None = None
    total: str | None = None


TRANSFORMERS = {
    SchedulerType.LINEAR: transformers.get_linear_schedule_with_warmup,
    SchedulerType.COSINE: transformers_cosine.get_cosine_schedule_with_warmup,
    SchedulerType.COSINE_WITH_RESTARTS: transformers_cosine.get_cosine_with_hard_restarts_schedule_with_warmup,
    SchedulerType.POLYNOMIAL: transformers.get_polynomial_decay_schedule_with_warmup,
    SchedulerType.CONSTANT: transformers.get_constant_schedule,
    SchedulerType.CONSTANT_WITH_WARMUP: transformers.get_constant_schedule_with_warmup,
    SchedulerType.INVERSE_SQRT: transformers.get_inverse_sqrt_schedule,
    SchedulerType.REDUCE_ON_PLATEAU: plateau.ReduceLROnPlateau,
    SchedulerType.COSINE_WITH_MIN_LR: transformers_cosine.get_cosine_with_min_lr_schedule_with_warmup,
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR: transformers_cosine.get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    SchedulerType.WARMUP_STABLE_DECAY: transformers.get_wsd_schedule,
}

SCHEDULES = {
    **{str(name): Row(make, warmup="num_warmup_steps", total="num_training_steps") for name, make in TRANSFORMERS.items()},
    "chained": Row(compose.ChainedScheduler, rate=None),
    "constant_lr": Row(decay.ConstantLR),
    "cosine_annealing": Row(cosine.CosineAnnealingLR),
    "cosine_annealing_warm_restarts": Row(cosine.CosineAnnealingWarmRestarts),
    "cosine_cycles": Row(cosine.CosineCyclesLR),
    "cosine_decay": Row(cosine.CosineDecayLR),
    "cosine_hard_restarts": Row(cosine.CosineHardRestartsLR),
    "cyclic": Row(cyclic.CyclicLR),
    "exponential": Row(decay.ExponentialLR),
    "inverse_sqrt_lr": Row(warmup.InverseSqrtLR),
    "lambda": Row(function.LambdaLR),
    "linear_lr": Row(decay.LinearLR),
    "linear_warmup": Row(warmup.LinearWarmupScheduler, rate="end_lr", warmup="warmup_steps"),
    "multi_step": Row(decay.MultiStepLR),
    "multiplicative": Row(function.MultiplicativeLR),
    "noam": Row(warmup.NoamLR, rate="factor", warmup="warmup_steps"),
    "one_cycle": Row(cyclic.OneCycleLR, rate="max_lr", total="total_steps"),
    "per_epoch": Row(compose.PerEpoch, rate=None),
    "polynomial_decay": Row(decay.PolynomialDecayLR),
    "polynomial_lr": Row(decay.PolynomialLR),
    "reduce_lr_on_plateau": Row(plateau.ReduceLROnPlateau, warmup="num_warmup_steps"),  # its name in newer transformers
    "sequential": Row(compose.SequentialLR, rate=None),
    "step": Row(decay.StepLR),
    "warmup_cos": Row(warmup.WarmupCosLR, rate="lr", warmup="warmup_epochs", total="epochs"),
    "warmup_stable_decay_lr": Row(stable.WarmupStableDecayLR, warmup="num_warmup_steps"),
}


@no_optimizer(position=1)
def get_scheduler(
    name: str | SchedulerType,
    base_lr: Scalar | None,
    num_warmup_steps: int | Array | None = None,
    num_training_steps: int | Array | None = None,
    scheduler_specific_kwargs: Mapping[str, Any] | None = None,
) -> Schedule:
    """The schedule called `name`, as in transformers.

    `name` is a `SchedulerType` or its string. It may also be any other schedule of this library in snake case, without the LR:
    "step", "one_cycle", "warmup_cos", "noam"; with "_lr" where transformers has another schedule of that name ("linear_lr").
    Such a schedule takes its arguments from `scheduler_specific_kwargs`; where it has an argument for the rate at the peak,
    the length of the warm-up or of the training, and that is not given there, it is what stands here.

    Args:
        name: the name.
        base_lr: the rate at the peak; the `factor` of "noam"; None for "sequential", "chained" and "per_epoch".
        num_warmup_steps: the length of the warm-up. transformers' names without a warm-up ignore it, as there.
        num_training_steps: the length of the training; what needs none ignores it.
        scheduler_specific_kwargs: further arguments by name.

    Raises:
        ValueError: the name or an argument is not known, or one is missing; lists what is accepted. Or a warm-up is asked of a
            schedule outside transformers that has none.

    Example:
        >>> from mithril_opt import get_scheduler
        >>> get_scheduler("linear", 10.0, num_warmup_steps=2, num_training_steps=10)([0, 1, 2, 6, 10])
        Array([ 0.,  5., 10.,  5.,  0.], dtype=float32)
        >>> get_scheduler("step", 0.1, scheduler_specific_kwargs={"step_size": 30})
        StepLR(base_lr=0.1, step_size=30, gamma=0.1)
    """
    name = str(name.value if isinstance(name, enum.Enum) else name)  # the enumeration may be transformers' own
    row = SCHEDULES.get(name)
    if row is None:
        raise ValueError(f"there is no schedule {name!r}; accepted are {', '.join(sorted(SCHEDULES))}")
    takes = f"get_scheduler({name!r}) takes {', '.join(inspect.signature(row.make).parameters)}"
    if row.rate is None and base_lr is not None:
        raise ValueError(f"{takes}, which have rates of their own: base_lr must be None, got {base_lr!r}")
    if row.warmup is None and (isinstance(num_warmup_steps, jax.Array) or num_warmup_steps):
        raise ValueError(f"{takes} and has no warm-up: chain it after a LinearWarmupScheduler")
    general = {row.rate: base_lr, row.warmup: num_warmup_steps, row.total: num_training_steps}
    return row.make(**_arguments(row.make, takes, general, scheduler_specific_kwargs or {}))


def _arguments(make: Callable[..., Schedule], takes: str, general: Mapping[Any, Any], specific: Mapping[str, Any]) -> Any:
    """What `make` is called with: of `general` what it takes, and all of `specific`; a ValueError if it does not fit."""
    accepted = inspect.signature(make).parameters
    unknown = [key for key in specific if key not in accepted]
    if unknown:
        raise ValueError(f"{takes}; scheduler_specific_kwargs has {', '.join(map(repr, unknown))}")
    arguments = {key: value for key, value in general.items() if key in accepted and value is not None} | dict(specific)
    missing = [key for key, parameter in accepted.items() if parameter.default is parameter.empty and key not in arguments]
    if missing:
        raise ValueError(f"{takes}; {', '.join(missing)} must be given")
    return arguments
