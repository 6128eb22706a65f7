"""Learning-rate schedules: pytrees that map a step count to a number."""

from mithril_opt.schedulers.base import Schedule
from mithril_opt.schedulers.compose import ChainedScheduler, PerEpoch, SequentialLR
from mithril_opt.schedulers.cosine import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineCyclesLR,
    CosineDecayLR,
    CosineHardRestartsLR,
)
from mithril_opt.schedulers.cyclic import CyclicLR, OneCycleLR, OneCycleMomentum
from mithril_opt.schedulers.decay import (
    ConstantLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialDecayLR,
    PolynomialLR,
    StepLR,
)
from mithril_opt.schedulers.function import LambdaLR, MultiplicativeLR
from mithril_opt.schedulers.named import SchedulerType, get_scheduler
from mithril_opt.schedulers.plateau import PlateauState, ReduceLROnPlateau
from mithril_opt.schedulers.stable import WarmupStableDecayLR
from mithril_opt.schedulers.transformers import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_reduce_on_plateau_schedule,
    get_wsd_schedule,
)
from mithril_opt.schedulers.warmup import InverseSqrtLR, LinearWarmupScheduler, NoamLR, WarmupCosLR

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineCyclesLR",
    "CosineDecayLR",
    "CosineHardRestartsLR",
    "CyclicLR",
    "ExponentialLR",
    "InverseSqrtLR",
    "LambdaLR",
    "LinearLR",
    "LinearWarmupScheduler",
    "MultiStepLR",
    "MultiplicativeLR",
    "NoamLR",
    "OneCycleLR",
    "OneCycleMomentum",
    "PerEpoch",
    "PlateauState",
    "PolynomialDecayLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SchedulerType",
    "SequentialLR",
    "StepLR",
    "WarmupCosLR",
    "WarmupStableDecayLR",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_reduce_on_plateau_schedule",
    "get_scheduler",
    "get_wsd_schedule",
]
