"""Wrappers: an optimizer in, an optimizer out."""

from mithril_opt.core.names import public as _public
from mithril_opt.wrappers.accumulate import Accumulate as Accumulate
from mithril_opt.wrappers.accumulate import AccumulateState as AccumulateState
from mithril_opt.wrappers.add_noise import AddNoise as AddNoise
from mithril_opt.wrappers.agc import AGC as AGC
from mithril_opt.wrappers.base import StatefulWrapper as StatefulWrapper
from mithril_opt.wrappers.base import Wrapper as Wrapper
from mithril_opt.wrappers.centralize import CentralizeGradients as CentralizeGradients
from mithril_opt.wrappers.clip import Clip as Clip
from mithril_opt.wrappers.ema import EMA as EMA
from mithril_opt.wrappers.ema import EMAState as EMAState
from mithril_opt.wrappers.frozen import Frozen as Frozen
from mithril_opt.wrappers.lookahead import Lookahead as Lookahead
from mithril_opt.wrappers.lookahead import LookaheadState as LookaheadState
from mithril_opt.wrappers.multi import MultiOptimizer as MultiOptimizer
from mithril_opt.wrappers.quantize import Quantize as Quantize
from mithril_opt.wrappers.record import Record as Record
from mithril_opt.wrappers.record import RecordState as RecordState
from mithril_opt.wrappers.record import read_record as read_record
from mithril_opt.wrappers.round import Round as Round
from mithril_opt.wrappers.round import RoundState as RoundState
from mithril_opt.wrappers.sam import SAM as SAM
from mithril_opt.wrappers.scale_rate import ScaleRate as ScaleRate
from mithril_opt.wrappers.scale_rate import layer_decay as layer_decay
from mithril_opt.wrappers.schedule_free import ScheduleFree as ScheduleFree
from mithril_opt.wrappers.schedule_free import ScheduleFreeState as ScheduleFreeState
from mithril_opt.wrappers.swa import SWA as SWA
from mithril_opt.wrappers.swa import SWAState as SWAState
from mithril_opt.wrappers.switch import Switch as Switch
from mithril_opt.wrappers.switch import SwitchState as SwitchState

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
