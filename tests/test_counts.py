"""What the compiler says a step costs: bytes, temporaries, copies. Deterministic, so the performance targets are tests."""

import re

import jax
import jax.numpy as jnp
import pytest
from zoo import OPTIMIZERS

from mithril_opt import SGD, Accumulate, AdaGrad, AdamW, MixedPrecisionTrainer, Quantize, RMSProp, Round, clip_gradients

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
    "16-bit": (Quantize(AdamW()).update, Quantize(AdamW()).init, 32.01, 0.001),
    "16-bit-rmsprop": (Quantize(RMSProp()).update, Quantize(RMSProp()).init, 22.01, 0.001),
    "8-bit": (Quantize(AdamW(), bits=8).update, Quantize(AdamW(), bits=8).init, 36.5, 0.1),
    "accumulate": (Accumulate(AdamW(), every=4).update, Accumulate(AdamW(), every=4).init, 52.1, 0.001),
}


@pytest.mark.newest
@pytest.mark.parametrize("name", STEPS)
def test_bytes_temporaries_and_copies(name):
    step, init, most_bytes, most_temporaries = STEPS[name]
    program = compiled(step, init)
    cost, memory = program.cost_analysis(), program.memory_analysis()
    assert cost["bytes accessed"] / COUNT <= most_bytes
    assert memory.temp_size_in_bytes / COUNT <= most_temporaries
    assert not {*copies(program.as_text())} & {",".join(map(str, shape)) for shape in SHAPES}
    # Every donated buffer is one of the results.
    donated = jax.tree.leaves((PARAMS, jax.eval_shape(init, PARAMS)))
    assert memory.alias_size_in_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in donated)


@pytest.mark.newest
@pytest.mark.parametrize(
    ("remainder", "most_bytes", "most_temporaries"), [(0, 32.01, 0.001), (8, 48.1, 4.01), (16, 50.1, 4.01)]
)
def test_bfloat16_parameters(remainder, most_bytes, most_temporaries):
    """On a CPU the new parameter is stored once in float32, before it is taken apart."""
    optimizer, leaf = Round(AdamW(), remainder=remainder), jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16)
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    program = step.lower(leaf, leaf, jax.eval_shape(optimizer.init, leaf)).compile()
    assert program.cost_analysis()["bytes accessed"] / leaf.size <= most_bytes
    assert program.memory_analysis().temp_size_in_bytes / leaf.size <= most_temporaries
    assert copies(program.as_text()) == []


@pytest.mark.newest
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in {"quantize", "multi"} else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_a_program_grows_as_the_number_of_leaves_does(name):
    """What all leaves share is not worked out again in the loop of each: compilation would take hours."""

    def instructions(number):
        leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
        optimizer, params = OPTIMIZERS[name](), {f"{i}/{'embed' if i % 2 else 'w'}": leaf for i in range(number)}
        step = jax.jit(optimizer.update).lower(params, params, jax.eval_shape(optimizer.init, params))
        return step.compile().as_text().count(" = ")

    assert instructions(16) <= 2.1 * instructions(8)


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
