"""The optimizers, one paper a file."""

from mithril_opt.optimizers.adagrad import AdaGrad
from mithril_opt.optimizers.adam import Adam, AdamW
from mithril_opt.optimizers.rmsprop import RMSProp
from mithril_opt.optimizers.sgd import SGD

__all__ = ["SGD", "AdaGrad", "Adam", "AdamW", "RMSProp"]
