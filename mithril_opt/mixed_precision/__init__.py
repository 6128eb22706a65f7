"""Mixed precision: which dtype computes, how the loss is scaled, and one step that is committed whole or not at all."""

from mithril_opt.core.names import public as _public
from mithril_opt.mixed_precision.commit import TrainerState as TrainerState
from mithril_opt.mixed_precision.loss_scale import LossScale as LossScale
from mithril_opt.mixed_precision.loss_scale import LossScaleState as LossScaleState
from mithril_opt.mixed_precision.loss_scale import LossScaleStuckError as LossScaleStuckError
from mithril_opt.mixed_precision.policy import Policy as Policy
from mithril_opt.mixed_precision.trainer import MixedPrecisionTrainer as MixedPrecisionTrainer

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
