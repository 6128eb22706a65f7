"""The learning-rate range test."""

import dataclasses
import functools
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.tree import overlay, trained
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.optimizers.sgd import SGD
from mithril_opt.tools.plotting import plot_range_test


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTestResult:
    """What `lr_range_test` found.

    Attributes:
        learning_rates: the rates that were tried, float64 array.
        losses: the loss of the batch at each of them, before the update, float64 array of the same length.
        suggestion: the rate at which the smoothed loss falls most steeply over the logarithm of the rate; None if it never
            falls below the first one.

    Example:
        >>> import numpy as np
        >>> from mithril_opt import RangeTestResult
        >>> RangeTestResult(np.array([0.01, 0.1]), np.array([2.0, 1.0]), suggestion=0.1)
        RangeTestResult(2 rates up to 0.1, suggestion=0.1)
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses over the rates, with the suggestion; returns the matplotlib `Axes`."""
        return plot_range_test(self, ax)

    def __repr__(self) -> str:
        return f"RangeTestResult({len(self.losses)} rates up to {self.learning_rates[-1]:.2g}, suggestion={self.suggestion})"


def lr_range_test(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    batches: Iterable[Any],
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = 100,
    optimizer: Optimizer | None = None,
    progress: bool = True,
) -> RangeTestResult:
    """Train with a rate that grows exponentially and watch the loss (Smith 2017).

    The i-th update uses the rate start_lr · (end_lr / start_lr)^(i / (num_steps − 1)). The test stops when the loss m exceeds
    four times the smallest one, m > m_min + 3 |m_min|, or is not finite. The parameters given are not changed. One compiled
    update runs per rate; the batches must be of one shape.

    Args:
        loss_fn: `(params, batch) -> loss`, a scalar.
        params: tree of parameters.
        batches: the batches. A list or a data loader is gone through again when it ends.
        start_lr: the first rate, > 0.
        end_lr: the last rate, above `start_lr`.
        num_steps: how many rates to try, ≥ 2.
        optimizer: an optimizer whose learning rate is replaced; `SGD()` if not given.
        progress: whether to show a progress bar: if tqdm is installed and the output is a terminal.

    Returns:
        A `RangeTestResult` with `learning_rates`, `losses`, `suggestion` and `plot()`.

    Raises:
        ValueError: a number is out of its range, the batches end early and cannot be gone through again, the first loss is
            not finite, or `optimizer` has no single learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import lr_range_test
        >>> result = lr_range_test(lambda w, x: jnp.mean((x * w) ** 2), jnp.float32(1.0), [jnp.ones(4)], progress=False)
        >>> 0.01 < result.suggestion < 0.1
        True
    """
    if not (0 < start_lr < end_lr < math.inf and num_steps >= 2):
        raise ValueError(
            f"lr_range_test needs 0 < start_lr < end_lr and num_steps ≥ 2, got {start_lr!r}, {end_lr!r}, {num_steps!r}"
        )
    optimizer = SGD() if optimizer is None else optimizer
    rates = np.geomspace(start_lr, end_lr, num_steps)
    losses = np.array([*_losses(loss_fn, params, _again_and_again(batches), rates, optimizer, progress)])
    if not losses.size:
        raise ValueError("lr_range_test: the loss is not finite before the first update")
    rates = rates[: losses.size]
    return RangeTestResult(rates, losses, _steepest_descent(rates, losses))


def _losses(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    batches: Iterator[Any],
    rates: np.ndarray,
    optimizer: Any,
    progress: bool,
) -> Iterator[float]:
    """The finite losses up to where they explode."""

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def update(optimizer: Any, own: PyTree, state: Any, batch: Any) -> tuple[PyTree, Any, Array]:
        loss, grads = jax.value_and_grad(lambda own: loss_fn(overlay(params, own, params), batch))(own)
        return *optimizer.update(own, grads, state), loss

    own = jax.tree.map(jnp.copy, trained(params))  # the caller's own arrays are not donated
    state = optimizer.with_learning_rate(0.0).init(own)
    smallest = math.inf
    for rate, batch in zip(_with_progress(rates, progress), batches, strict=False):
        own, state, loss = update(optimizer.with_learning_rate(jnp.float32(rate)), own, state, batch)
        if not math.isfinite(loss):
            return
        yield float(loss)
        smallest = min(smallest, float(loss))
        if loss > smallest + 3 * abs(smallest):
            return


def _again_and_again(batches: Iterable[Any]) -> Iterator[Any]:
    for count in itertools.count():
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "lr_range_test: the batches ended before the test did and cannot be gone through again: give a list or a "
                "data loader, or as many batches as num_steps"
                if count
                else "lr_range_test: there are no batches"
            )


def _with_progress(rates: np.ndarray, progress: bool) -> Iterable[float]:
    """`rates`, with a progress bar if tqdm is installed and the output is a terminal."""
    if progress and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        return tqdm(rates, desc="learning-rate range test", unit="step")
    return rates


def _steepest_descent(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate at which the loss, averaged over a twentieth of the rates to either side, falls most steeply."""
    if losses.size < 3 or losses.min() == losses[0]:
        return None
    reach = max(1, losses.size // 20)
    smooth = np.array([losses[max(0, i - reach) : i + reach + 1].mean() for i in range(losses.size)])
    slopes = np.gradient(smooth, np.log(rates))
    return float(rates[np.argmin(slopes)])
