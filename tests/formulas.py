"""Formulas of schedules in float64, for the tests."""

import math


def wave(x):
    """½ (1 + cos(π x)), which keeps its accuracy near x = 1."""
    return math.sin(math.pi / 2 * (1 - x)) ** 2


def restarts(k, first, multiple, low=0.0):
    """By walking through the cycles, with Python's integers."""
    length = first
    while k >= length:
        k, length = k - length, length * multiple
    return low + (0.3 - low) * wave(k / length)
