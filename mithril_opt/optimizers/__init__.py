"""The optimizers, one paper a file."""

from mithril_opt.core.names import public as _public
from mithril_opt.optimizers.adadelta import AdaDelta as AdaDelta
from mithril_opt.optimizers.adafactor import Adafactor as Adafactor
from mithril_opt.optimizers.adagrad import AdaGrad as AdaGrad
from mithril_opt.optimizers.adam import Adam as Adam
from mithril_opt.optimizers.adam import AdamW as AdamW
from mithril_opt.optimizers.adamax import Adamax as Adamax
from mithril_opt.optimizers.adan import Adan as Adan
from mithril_opt.optimizers.ademamix import AdEMAMix as AdEMAMix
from mithril_opt.optimizers.adopt import ADOPT as ADOPT
from mithril_opt.optimizers.lamb import LAMB as LAMB
from mithril_opt.optimizers.lars import LARS as LARS
from mithril_opt.optimizers.lion import Lion as Lion
from mithril_opt.optimizers.muon import Muon as Muon
from mithril_opt.optimizers.muon import hidden_matrices as hidden_matrices
from mithril_opt.optimizers.nadam import NAdam as NAdam
from mithril_opt.optimizers.prodigy import Prodigy as Prodigy
from mithril_opt.optimizers.radam import RAdam as RAdam
from mithril_opt.optimizers.rmsprop import RMSProp as RMSProp
from mithril_opt.optimizers.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from mithril_opt.optimizers.schedule_free import ScheduleFreeSGD as ScheduleFreeSGD
from mithril_opt.optimizers.sgd import SGD as SGD
from mithril_opt.optimizers.soap import SOAP as SOAP

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
