"""What a user's type checker must accept; checked with the package by pyright."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mithril_opt import (
    SGD,
    Accumulate,
    Adafactor,
    Adam,
    AdamW,
    AdEMAMix,
    CosineAnnealingLR,
    HalfLifeWarmup,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    ReduceLROnPlateau,
    RMSProp,
    StepLR,
)

schedule = LinearWarmupScheduler(10, 0.0, 0.1, after_scheduler=CosineAnnealingLR(0.1, T_max=100))
optimizers = [
    SGD(),
    SGD(0.1, momentum=0.9),
    Adam(learning_rate=schedule),
    AdamW(1e-3, weight_decay=StepLR(0.1, step_size=10)),
    AdamW(decay="full", max_learning_rate=1e-3, update_clip=lambda step: 1.0, unit_axes=lambda path, leaf: None),
    Adafactor(beta1=None, update_clip=None, matrix_axes=(0, -1), unit_axes=0),
    RMSProp(learning_rate=lambda step: 0.1 / (step + 1)),
    Adam(ReduceLROnPlateau(0.1, patience=3)),
    Accumulate(Adam(beta1=0.8), every=4),
    AdEMAMix(beta1=0.0, beta3=HalfLifeWarmup(0.9, 0.9999, steps=100)),
    MultiOptimizer({"a": Adam(), "b": SGD()}, groups={"a": "w*", "b": "bias"}),
]
params = {"w": jnp.ones(3), "bias": jnp.zeros(3)}
for optimizer in optimizers:
    state = optimizer.init(params)
    params, state = optimizer.update(params, params, state)

trainer = MixedPrecisionTrainer(None, AdamW(), clip_norm=1.0, policy="bfloat16")
trainer_state = trainer.init(params)
loss, grads = trainer.value_and_grad(lambda params: jnp.sum(params["w"]))(params, trainer_state)
params, trainer_state, success = trainer.update(params, grads, trainer_state, loss=loss)
rate: jax.Array = Adam().get_learning_rate(Adam().init(params))

if TYPE_CHECKING:  # what a type checker must refuse: an ignore that is not needed is an error
    Adam("fast")  # pyright: ignore[reportArgumentType]
    Adam(beta1="slow")  # pyright: ignore[reportArgumentType]
    AdamW(weight_decay=[0.1])  # pyright: ignore[reportArgumentType]
    AdamW(decay="half")  # pyright: ignore[reportArgumentType]
    StepLR(0.1, step_size=10, gamma="half")  # pyright: ignore[reportArgumentType]
