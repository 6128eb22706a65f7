"""Mixed precision: which dtype computes, how the loss is scaled, and one step that is committed whole or not at all."""

from mithril_opt.mixed_precision.loss_scale import LossScale, LossScaleState, LossScaleStuckError
from mithril_opt.mixed_precision.policy import Policy
from mithril_opt.mixed_precision.trainer import MixedPrecisionTrainer, TrainerState

__all__ = ["LossScale", "LossScaleState", "LossScaleStuckError", "MixedPrecisionTrainer", "Policy", "TrainerState"]
