"""Draws docs/images/schedules.png, a picture of every schedule: `python docs/schedule_gallery.py`, with the extra `demo`."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineCyclesLR,
    CosineDecayLR,
    CosineHardRestartsLR,
    CyclicLR,
    ExponentialLR,
    InverseSqrtLR,
    LambdaLR,
    LinearLR,
    LinearWarmupScheduler,
    MultiplicativeLR,
    MultiStepLR,
    NoamLR,
    OneCycleLR,
    PerEpoch,
    PolynomialDecayLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
    WarmupCosLR,
    WarmupStableDecayLR,
)

FILE = pathlib.Path(__file__).parent / "images" / "schedules.png"
STEPS = 200
ONE_CYCLE = OneCycleLR(1.0, total_steps=STEPS)

PANELS = {
    "LambdaLR": LambdaLR(1.0, lambda step: 1 / (1 + step / 20)),
    "MultiplicativeLR": MultiplicativeLR(
        1.0, lambda step: jnp.where(step % 20 == 0, 0.7, 0.995)
    ),
    "StepLR": StepLR(1.0, step_size=50, gamma=0.5),
    "MultiStepLR": MultiStepLR(1.0, milestones=[100, 150], gamma=0.3),
    "ExponentialLR": ExponentialLR(1.0, gamma=0.98),
    "ConstantLR": ConstantLR(1.0, factor=0.3, total_iters=40),
    "LinearLR": LinearLR(1.0, start_factor=0.2, total_iters=60),
    "PolynomialLR": PolynomialLR(1.0, total_iters=160, power=2.0),
    "PolynomialDecayLR": PolynomialDecayLR(1.0, decay_steps=160, lr_end=0.2, power=3.0),
    "InverseSqrtLR": InverseSqrtLR(1.0, timescale=20),
    "CosineAnnealingLR": CosineAnnealingLR(1.0, T_max=80, eta_min=0.1),
    "CosineDecayLR": CosineDecayLR(1.0, decay_steps=150, min_lr=0.1),
    "CosineAnnealingWarmRestarts": CosineAnnealingWarmRestarts(1.0, T_0=25, T_mult=2),
    "CosineCyclesLR": CosineCyclesLR(1.0, decay_steps=STEPS, num_cycles=2.5),
    "CosineHardRestartsLR": CosineHardRestartsLR(1.0, decay_steps=180, num_cycles=3),
    "CyclicLR, triangular": CyclicLR(0.1, 1.0, step_size_up=20, step_size_down=30),
    "CyclicLR, triangular2": CyclicLR(0.1, 1.0, step_size_up=25, mode="triangular2"),
    "CyclicLR, exp_range": CyclicLR(
        0.1, 1.0, step_size_up=20, mode="exp_range", gamma=0.99
    ),
    "OneCycleLR": ONE_CYCLE,
    "OneCycleMomentum": ONE_CYCLE.momentum_schedule(),
    "LinearWarmupScheduler": LinearWarmupScheduler(
        40, 0.1, 1.0, ExponentialLR(1.0, gamma=0.99)
    ),
    "WarmupCosLR": PerEpoch(
        WarmupCosLR(0.05, 1.0, warmup_epochs=4, epochs=20), steps_per_epoch=10
    ),
    "NoamLR": NoamLR(d_model=1, warmup_steps=50, factor=50**0.5),
    "WarmupStableDecayLR": WarmupStableDecayLR(
        1.0, 30, 100, 60, decay_type="1-sqrt", min_lr_ratio=0.05
    ),
    "WarmupStableDecayLR, cosine": WarmupStableDecayLR(
        1.0, 40, 60, 80, warmup_type="cosine"
    ),
    "SequentialLR": SequentialLR(
        [LinearLR(1.0, 0.1, total_iters=30), CosineAnnealingLR(1.0, T_max=70)],
        milestones=[30],
    ),
    "ChainedScheduler": ChainedScheduler(
        [LinearWarmupScheduler(30, 0.0, 1.0), StepLR(1.0, step_size=60, gamma=0.5)]
    ),
    "PerEpoch": PerEpoch(CosineDecayLR(1.0, decay_steps=10), steps_per_epoch=20),
    "ReduceLROnPlateau": ReduceLROnPlateau(1.0, factor=0.5, patience=10, cooldown=10),
    "warm-up, ReduceLROnPlateau": LinearWarmupScheduler(
        40, 0.0, 1.0, ReduceLROnPlateau(1.0, factor=0.3, patience=15)
    ),
}
COLORS = (
    ["tab:blue"] * 10
    + ["tab:green"] * 5
    + ["tab:purple"] * 5
    + ["tab:orange"] * 5
    + ["tab:red"] * 5
)


def rates(schedule):
    """The rates of a training whose metric stops improving half-way."""
    metrics = np.maximum(1 - np.arange(STEPS) / 100, 0.2)

    def advance(memory, at):
        step, metric = at
        return schedule.observe(memory, metric, step), schedule.read(memory, step)

    return np.asarray(
        jax.lax.scan(
            advance, schedule.init(), (jnp.arange(STEPS), jnp.float32(metrics))
        )[1]
    )


def main():
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        6, 5, figsize=(10.5, 10.5), layout="constrained", sharex=True
    )
    for ax, color, (title, schedule) in zip(
        axes.flat, COLORS, PANELS.items(), strict=True
    ):
        values = rates(schedule)
        ax.plot(values, color=color)
        ax.fill_between(range(STEPS), values, color=color, alpha=0.12, linewidth=0)
        ax.set_title(title, fontsize=8.5)
        ax.set(ylim=(0, 1.08), yticks=[0, 1], xlim=(0, STEPS), xticks=[0, 100, 200])
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("step")
    FILE.parent.mkdir(exist_ok=True)
    figure.savefig(FILE, dpi=110)


if __name__ == "__main__":
    main()
