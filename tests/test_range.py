"""The learning-rate range test: on problems whose answer is known."""

import math
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from zoo import bits

from mithril_opt import SGD, AdamW, MultiOptimizer, ReduceLROnPlateau, lr_range_test

mpl.use("Agg")
ONES = [jnp.ones(4)]


def parabola(w, x):
    """½ w²: gradient descent with the rate η multiplies w by 1 − η."""
    return 0.5 * w**2 * jnp.mean(x)


def exact_losses(rates):
    factors = np.concatenate([[1.0], np.cumprod(1 - rates[:-1])])
    return 0.5 * factors**2


def test_gradient_descent_on_a_parabola():
    result = lr_range_test(parabola, jnp.float32(1.0), ONES, start_lr=1e-4, end_lr=0.5, num_steps=60)
    np.testing.assert_allclose(result.learning_rates, np.geomspace(1e-4, 0.5, 60))
    np.testing.assert_allclose(result.losses, exact_losses(result.learning_rates), rtol=1e-4)
    slopes = np.gradient(result.losses, np.log(result.learning_rates))
    steepest = result.learning_rates[np.argmin(slopes)]
    assert steepest / 1.5 < result.suggestion < steepest * 1.5
    assert isinstance(result.suggestion, float)


def test_it_stops_where_the_loss_exceeds_four_times_its_minimum():
    """Rates around 2, where the loss begins to grow, by less than a third per step."""
    rates = np.geomspace(1.8, 2.2, 400)
    losses = exact_losses(rates)
    stop = next(i for i in range(400) if losses[i] > 4 * losses[: i + 1].min())
    result = lr_range_test(parabola, jnp.float32(1.0), ONES, 1.8, 2.2, 400)
    assert len(result.losses) == len(result.learning_rates) == stop + 1 < 400
    assert result.losses[-1] > 4 * result.losses.min() >= result.losses[-2] > 3.1 * result.losses.min()


def test_it_stops_at_a_loss_that_is_not_finite():
    def cliff(w, batch):
        return jnp.where(jnp.abs(w) > 2, jnp.nan, w**2 + 10)

    result = lr_range_test(cliff, jnp.float32(1.0), ONES, 1e-2, 1e2, 50)
    assert len(result.losses) < 50
    assert np.isfinite(result.losses).all()


def test_a_negative_loss_does_not_stop_it():
    result = lr_range_test(lambda w, x: parabola(w, x) - 7.0, jnp.float32(1.0), ONES, 1e-4, 0.1, 30)
    assert len(result.losses) == 30
    assert result.suggestion is not None


def test_a_loss_that_never_falls_gets_no_suggestion():
    assert lr_range_test(lambda w, x: 0 * w + 1.0, jnp.float32(1.0), ONES, num_steps=20).suggestion is None


@pytest.mark.parametrize(
    "optimizer", [SGD(learning_rate=ReduceLROnPlateau(9.0), momentum=0.5), AdamW(learning_rate=lambda step: 9.0)]
)
def test_the_rate_of_any_optimizer_is_replaced(optimizer):
    params = {"w": jnp.ones(3), "name": "a passenger", "count": jnp.int32(3)}
    before = bits([params["w"], params["count"]])
    result = lr_range_test(
        lambda params, x: jnp.sum((params["w"] - x) ** 2), params, [jnp.zeros(3)], 1e-5, 3e-2, 40, optimizer=optimizer
    )
    assert len(result.losses) == 40
    assert 1e-5 < result.suggestion < 3e-2
    assert bits([params["w"], params["count"]]) == before  # not donated, not changed


def test_one_compilation_and_one_batch_per_rate():
    traces, used = [], []

    def loss(w, x):
        traces.append(None)
        return parabola(w, x)

    def batches():
        for i in range(1000):
            used.append(i)
            yield ONES[0]

    lr_range_test(loss, jnp.float32(1.0), batches(), end_lr=0.1, num_steps=25)
    assert len(traces) == 1
    assert len(used) in (25, 26)


def test_a_list_is_gone_through_again():
    batches = [jnp.full(4, 1.0), jnp.full(4, 2.0), jnp.full(4, 3.0)]
    result = lr_range_test(parabola, jnp.float32(1.0), batches, 1e-7, 1e-6, 10)
    np.testing.assert_allclose(result.losses, 0.5 * np.array([1, 2, 3] * 3 + [1]), rtol=1e-4)


def test_the_plot_shows_rates_losses_and_suggestion():
    result = lr_range_test(parabola, jnp.float32(1.0), ONES, 1e-4, 0.5, 60)
    ax = result.plot(Figure().add_subplot())
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "learning rate", "loss")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.stack([result.learning_rates, result.losses], axis=1))
    assert ax.lines[1].get_xdata()[0] == result.suggestion
    assert f"{result.suggestion:.2g}" in ax.get_legend().get_texts()[0].get_text()
    assert repr(result).startswith("RangeTestResult(60 rates up to 0.5, suggestion=0.")


class Terminal:
    """A standard error that is a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize(("progress", "shows"), [(True, True), (False, False)])
def test_the_progress_bar_shows_in_a_terminal(monkeypatch, progress, shows):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    lr_range_test(parabola, jnp.float32(1.0), ONES, end_lr=0.1, num_steps=10, progress=progress)
    assert ("learning-rate range test" in terminal.text) == shows


def test_no_progress_bar_without_a_terminal_or_without_tqdm(monkeypatch, capfd):
    lr_range_test(parabola, jnp.float32(1.0), ONES, end_lr=0.1, num_steps=10)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lr_range_test(parabola, jnp.float32(1.0), ONES, end_lr=0.1, num_steps=10)
    assert sys.stderr.text == ""


def run(**changes):
    arguments = dict(loss_fn=parabola, params=jnp.float32(1.0), batches=ONES, end_lr=0.1, num_steps=10, progress=False)
    return lr_range_test(**{**arguments, **changes})


BAD = [
    (dict(start_lr=0.0), "0 < start_lr < end_lr and num_steps ≥ 2, got 0.0, 0.1, 10"),
    (dict(start_lr=0.2), "0 < start_lr < end_lr"),
    (dict(end_lr=math.inf), "0 < start_lr < end_lr"),
    (dict(num_steps=1), "num_steps ≥ 2, got 1e-07, 0.1, 1"),
    (dict(batches=[]), "there are no batches"),
    (dict(batches=iter(ONES * 4)), "ended before the test did and cannot be gone through again"),
    (dict(params=jnp.float32(math.nan)), "the loss is not finite before the first update"),
    (dict(optimizer=MultiOptimizer({"a": SGD()}, {"a": ...})), "a MultiOptimizer has a learning rate for each group"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_under_jit_of_the_loss_and_with_a_tree_of_batches():
    batches = [{"x": jnp.arange(4.0), "y": 2 * jnp.arange(4.0)}]
    loss = jax.jit(lambda w, batch: jnp.mean((w * batch["x"] - batch["y"]) ** 2))
    assert 1e-3 < lr_range_test(loss, jnp.float32(0.0), batches, 1e-5, 1.0, 60).suggestion < 0.2
