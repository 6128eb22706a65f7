"""Wrappers: an optimizer in, an optimizer out."""

from mithril_opt.wrappers.accumulate import Accumulate, AccumulateState
from mithril_opt.wrappers.clip import Clip

__all__ = ["Accumulate", "AccumulateState", "Clip"]
