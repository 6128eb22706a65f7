"""What the compiler says a step costs: bytes, temporaries, copies. Deterministic, so the performance targets are tests."""

import re

import jax
import jax.numpy as jnp
import pytest

from mithril_opt import SGD, Accumulate, AdaGrad, AdamW, MixedPrecisionTrainer, RMSProp, clip_gradients

WIDTH, LAYERS = 768, 6
LAYER = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)]
SHAPES = [(30_000, WIDTH), (1024, WIDTH), *LAYER * LAYERS, (WIDTH,), (WIDTH,)]
PARAMS = {f"leaf{i:02}": jax.ShapeDtypeStruct(shape, jnp.float32) for i, shape in enumerate(SHAPES)}
COUNT = sum(leaf.size for leaf in PARAMS.values())
TRAINER = MixedPrecisionTrainer(None, AdamW(), clip_norm=1.0)


def clipped(params, grads, state):
    return AdamW().update(params, clip_gradients(grads, clip_norm=1.0), state)


def compiled(step, init):
    """A donated step over a small GPT of 66 million parameters, compiled and never run."""
    return jax.jit(step, donate_argnums=(0, 2)).lower(PARAMS, PARAMS, jax.eval_shape(init, PARAMS)).compile()


# name: step, init, most bytes per parameter, most bytes of temporaries per parameter
STEPS = {
    "adamw": (AdamW().update, AdamW().init, 40.01, 0.001),
    "sgd-momentum": (SGD(momentum=0.9).update, SGD(momentum=0.9).init, 24.01, 0.001),
    "rmsprop": (RMSProp().update, RMSProp().init, 28.01, 0.001),
    "adagrad": (AdaGrad().update, AdaGrad().init, 28.01, 0.001),
    "clip": (clipped, AdamW().init, 44.5, 0.1),
    "full": (TRAINER.update, TRAINER.init, 48.0, 0.5),
    "accumulate": (Accumulate(AdamW(), every=4).update, Accumulate(AdamW(), every=4).init, 52.1, 0.001),
}


@pytest.mark.parametrize("name", STEPS)
def test_bytes_temporaries_and_copies(name):
    step, init, most_bytes, most_temporaries = STEPS[name]
    program = compiled(step, init)
    cost, memory = program.cost_analysis(), program.memory_analysis()
    assert cost["bytes accessed"] / COUNT <= most_bytes
    assert memory.temp_size_in_bytes / COUNT <= most_temporaries
    assert copies(program.as_text()) == []
    # Every donated buffer is one of the results.
    donated = jax.tree.leaves((PARAMS, jax.eval_shape(init, PARAMS)))
    assert memory.alias_size_in_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in donated)


def copies(hlo):
    """The shapes of all copies of arrays of at least a thousand elements."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* copy(?:-start)?\(", hlo)
    return [shape for shape in shapes if shape and int(jnp.prod(jnp.asarray([int(n) for n in shape.split(",")]))) >= 1000]


def test_copies_are_found():
    """A step that selects afterwards must copy what it was given: the check above can fail."""

    def select_afterwards(params, grads, state):
        new_params, new_state = AdamW().update(params, grads, state)
        ok = jnp.isfinite(grads["leaf02"][0])
        return jax.tree.map(lambda new, old: jnp.where(ok, new, old), (new_params, new_state), (params, state))

    program = compiled(select_afterwards, AdamW().init)
    assert copies(program.as_text()) or program.memory_analysis().temp_size_in_bytes / COUNT > 1
