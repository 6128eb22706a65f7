"""Learning-rate schedules: pytrees that map a step count to a number."""

from mithril_opt.core.names import public as _public
from mithril_opt.core.schedule import Schedule as Schedule
from mithril_opt.schedulers.compose import ChainedScheduler as ChainedScheduler
from mithril_opt.schedulers.compose import PerEpoch as PerEpoch
from mithril_opt.schedulers.compose import SequentialLR as SequentialLR
from mithril_opt.schedulers.cosine import CosineAnnealingLR as CosineAnnealingLR
from mithril_opt.schedulers.cosine import CosineAnnealingWarmRestarts as CosineAnnealingWarmRestarts
from mithril_opt.schedulers.cosine import CosineCyclesLR as CosineCyclesLR
from mithril_opt.schedulers.cosine import CosineDecayLR as CosineDecayLR
from mithril_opt.schedulers.cosine import CosineHardRestartsLR as CosineHardRestartsLR
from mithril_opt.schedulers.cyclic import CyclicLR as CyclicLR
from mithril_opt.schedulers.cyclic import OneCycleLR as OneCycleLR
from mithril_opt.schedulers.cyclic import OneCycleMomentum as OneCycleMomentum
from mithril_opt.schedulers.decay import ConstantLR as ConstantLR
from mithril_opt.schedulers.decay import ExponentialLR as ExponentialLR
from mithril_opt.schedulers.decay import LinearLR as LinearLR
from mithril_opt.schedulers.decay import MultiStepLR as MultiStepLR
from mithril_opt.schedulers.decay import PolynomialDecayLR as PolynomialDecayLR
from mithril_opt.schedulers.decay import PolynomialLR as PolynomialLR
from mithril_opt.schedulers.decay import StepLR as StepLR
from mithril_opt.schedulers.function import LambdaLR as LambdaLR
from mithril_opt.schedulers.function import MultiplicativeLR as MultiplicativeLR
from mithril_opt.schedulers.half_life import HalfLifeWarmup as HalfLifeWarmup
from mithril_opt.schedulers.named import SchedulerType as SchedulerType
from mithril_opt.schedulers.named import get_scheduler as get_scheduler
from mithril_opt.schedulers.plateau import PlateauState as PlateauState
from mithril_opt.schedulers.plateau import ReduceLROnPlateau as ReduceLROnPlateau
from mithril_opt.schedulers.stable import WarmupStableDecayLR as WarmupStableDecayLR
from mithril_opt.schedulers.transformers import get_constant_schedule as get_constant_schedule
from mithril_opt.schedulers.transformers import get_constant_schedule_with_warmup as get_constant_schedule_with_warmup
from mithril_opt.schedulers.transformers import get_inverse_sqrt_schedule as get_inverse_sqrt_schedule
from mithril_opt.schedulers.transformers import get_linear_schedule_with_warmup as get_linear_schedule_with_warmup
from mithril_opt.schedulers.transformers import (
    get_polynomial_decay_schedule_with_warmup as get_polynomial_decay_schedule_with_warmup,
)
from mithril_opt.schedulers.transformers import get_reduce_on_plateau_schedule as get_reduce_on_plateau_schedule
from mithril_opt.schedulers.transformers import get_wsd_schedule as get_wsd_schedule
from mithril_opt.schedulers.transformers_cosine import (
    get_cosine_schedule_with_warmup as get_cosine_schedule_with_warmup,
)
from mithril_opt.schedulers.transformers_cosine import (
    get_cosine_with_hard_restarts_schedule_with_warmup as get_cosine_with_hard_restarts_schedule_with_warmup,
)
from mithril_opt.schedulers.transformers_cosine import (
    get_cosine_with_min_lr_schedule_with_warmup as get_cosine_with_min_lr_schedule_with_warmup,
)
from mithril_opt.schedulers.transformers_cosine import (
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate as get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
)
from mithril_opt.schedulers.warmup import InverseSqrtLR as InverseSqrtLR
from mithril_opt.schedulers.warmup import LinearWarmupScheduler as LinearWarmupScheduler
from mithril_opt.schedulers.warmup import NoamLR as NoamLR
from mithril_opt.schedulers.warmup import WarmupCosLR as WarmupCosLR

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
