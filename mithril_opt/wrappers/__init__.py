"""Wrappers: an optimizer in, an optimizer out."""

from mithril_opt.wrappers.accumulate import Accumulate, AccumulateState

__all__ = ["Accumulate", "AccumulateState"]
