"""The optimizers, one paper a file."""

from mithril_opt.core.names import public as _public
from mithril_opt.optimizers.adagrad import AdaGrad as AdaGrad
from mithril_opt.optimizers.adam import Adam as Adam
from mithril_opt.optimizers.adam import AdamW as AdamW
from mithril_opt.optimizers.rmsprop import RMSProp as RMSProp
from mithril_opt.optimizers.sgd import SGD as SGD

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
