"""Wrappers: an optimizer in, an optimizer out."""

from mithril_opt.core.names import public as _public
from mithril_opt.wrappers.accumulate import Accumulate as Accumulate
from mithril_opt.wrappers.accumulate import AccumulateState as AccumulateState
from mithril_opt.wrappers.base import StatefulWrapper as StatefulWrapper
from mithril_opt.wrappers.base import Wrapper as Wrapper
from mithril_opt.wrappers.clip import Clip as Clip
from mithril_opt.wrappers.frozen import Frozen as Frozen
from mithril_opt.wrappers.multi import MultiOptimizer as MultiOptimizer

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
