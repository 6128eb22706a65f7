"""What a plot of schedules shows."""

import runpy
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from mithril_opt import (
    CosineAnnealingLR,
    HalfLifeWarmup,
    LinearWarmupScheduler,
    OneCycleLR,
    Schedule,
    StepLR,
    WarmupCosLR,
    plot_schedule,
    schedulers,
)

mpl.use("Agg")
SCHEDULE = LinearWarmupScheduler(10, 0.0, 0.5, CosineAnnealingLR(0.5, T_max=90, eta_min=0.05))


def axes():
    return Figure().add_subplot()


def test_one_schedule_with_its_values_beside_the_curve():
    ax = axes()
    assert plot_schedule(SCHEDULE, 100, ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(100))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), SCHEDULE(np.arange(100)))
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [0, 10, 99])
    assert sorted(text.get_text() for text in ax.texts) == ["0", "0.0501", "0.5"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_legend()) == ("step", "learning rate", None)


def test_a_value_that_is_start_and_peak_is_written_once():
    ax = plot_schedule(StepLR(0.5, 30), 100, axes())
    assert sorted(text.get_text() for text in ax.texts) == ["0.0005", "0.5"]


def test_several_on_one_axis_with_their_values_in_the_legend():
    ax = plot_schedule([SCHEDULE, lambda step: 0.1 * 0.9**step], 100, axes())
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["1. LinearWarmupScheduler: 0 → 0.5 → 0.0501", "2. <lambda>: 0.1 → 0.1 → 2.95e-06"]
    ax = plot_schedule({"cosine": SCHEDULE, "one cycle": OneCycleLR(0.5, 100)}, 100, axes())
    assert [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()] == ["cosine", "one cycle"]


def test_in_epochs_and_on_the_current_axes():
    ax = plot_schedule(SCHEDULE, 100, steps_per_epoch=20)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), np.arange(100) / 20)
    assert ax.get_xlabel() == "epoch"
    plt.close("all")


def test_the_gallery_shows_every_schedule():
    gallery = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "schedule_gallery.py"))
    shown = {type(schedule) for schedule in gallery["PANELS"].values()} | {WarmupCosLR}  # in its panel it is counted in epochs
    public = [getattr(schedulers, name) for name in schedulers.__all__]
    of_rates = {one for one in public if isinstance(one, type) and issubclass(one, Schedule)} - {Schedule, HalfLifeWarmup}
    assert of_rates - shown == set()
    reduced = gallery["rates"](gallery["PANELS"]["ReduceLROnPlateau"])
    assert reduced[0] == 1.0 > reduced[-1] > 0
    assert gallery["FILE"].exists()


BAD = [
    (lambda: plot_schedule(SCHEDULE, 0), ValueError, "num_steps must be at least 1, got 0"),
    (lambda: plot_schedule(SCHEDULE, 10, steps_per_epoch=0), ValueError, "steps_per_epoch must be at least 1, got 0"),
    (lambda: plot_schedule([], 10), ValueError, "there is no schedule to draw"),
    (lambda: plot_schedule(0.1, 10), TypeError, "plot_schedule takes a schedule or a function of the step, got 0.1"),
]


@pytest.mark.parametrize(("draw", "error", "message"), BAD)
def test_bad_input(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
