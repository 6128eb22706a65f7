"""Gradient noise."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import ScalarOrSchedule, number, steps
from mithril_opt.core.numerics import safe_sqrt
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.tree import map_leaves, paths_of, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.words import constant, in_digits


@pytree
class AddNoise(Wrapper):
    """Gradient noise (Neelakantan et al. 2015): g ← g + N(0, η / (1 + t)^γ), t = 0, 1, … the number of applied updates.

    The noise of an element follows from the seed, t, and the path of its leaf alone: a run that is resumed sees the same, on
    any number of devices, and a leaf keeps its noise when others come or go. Of a complex gradient each part has half the
    variance. To clip what is noisy, put the clip inside: `AddNoise(Clip(SGD(), clip_norm=1.0), eta=0.3)`.

    Args:
        optimizer: the inner optimizer.
        eta: η ≥ 0, the variance at the start, or its schedule; the paper has 0.01, 0.3 and 1.
        gamma: γ ≥ 0, or its schedule.
        seed: an integer of at least 0.

    Raises:
        ValueError: a Python number is out of its range.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, AddNoise
        >>> optimizer, params = AddNoise(SGD(learning_rate=1.0), eta=0.01), jnp.zeros(10_000)
        >>> noise, _ = optimizer.update(params, params, optimizer.init(params))
        >>> f"{noise.std():.2f}"
        '0.10'
    """

    optimizer: Optimizer
    eta: ScalarOrSchedule = number(minimum=0)
    gamma: ScalarOrSchedule = number(default=0.55, minimum=0)
    seed: int | Array = steps(default=0, minimum=0)

    @property
    def hands_on_gradients(self) -> bool:
        return False

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        own, t = self.numbers(state), self.clock(state)
        with jax.numpy_dtype_promotion("standard"):
            deviation = safe_sqrt(own.eta / (1 + t.astype(jnp.float32)) ** own.gamma)
        key = jax.random.fold_in(jax.random.key(own.seed), t)

        def noisy(g: Array, path: str) -> Array:
            g = widen(g)
            noise = jax.random.normal(_folded(key, path), g.shape, g.dtype)  # of variance 1, both parts of it together
            return g + (deviation * noise).astype(g.dtype)

        grads = map_leaves(noisy, params, grads, paths_of(params))
        return super().compute_updates(params, grads, state, **extra_args)

    def says(self) -> str:
        return f"noise of variance {in_digits(self.eta)} / (1 + t)^{in_digits(self.gamma)} added to the gradients"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return "its eta is 0" if constant(self.eta) == 0 else None


def _folded(key: Array, path: str) -> Array:
    """`key` for the leaf at `path`: its own, as far as 64 bits tell paths apart."""
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    words = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")
    return jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1])
