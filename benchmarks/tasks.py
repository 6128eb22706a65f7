"""Two small trainings, with any storage: the demo's language model, and handwritten digits."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt import AdamW, CosineAnnealingLR
from mithril_opt.demo import data, model, train
from mithril_opt.demo.storage import Storage, bytes_per_parameter

BATCH, WIDTH = 128, 256


class Result(NamedTuple):
    """How a training ended.

    Attributes:
        loss: on held-out data, or of a long run on all of the training data.
        bytes: of parameters and state, per parameter, counted from live buffers.
    """

    loss: float
    bytes: float


def demo(storage: Storage, seed: int, steps: int) -> Result:
    """The demo of the library, its validation loss."""
    corpus = data.build_corpus(data.read_text(), model.VOCABULARY)
    trainer = train.make_trainer(steps, "float32", storage=storage)
    generator = np.random.default_rng(seed)
    params = storage.cast(model.init(generator))
    state, step = trainer.init(params), train.make_step(trainer)
    tokens, held_out = jnp.asarray(corpus.train), jnp.asarray(corpus.validation)
    for _ in range(steps):
        starts = data.random_starts(generator, len(tokens), train.BATCH, model.CONTEXT)
        params, state, _ = step(params, state, tokens, starts)
    wide = trainer.optimizer.eval_params(params, state.optimizer)
    loss = train.evaluate(wide, held_out, data.consecutive_starts(len(held_out), model.CONTEXT))
    return Result(float(loss), bytes_per_parameter(params, state.optimizer))


def digits(storage: Storage, seed: int, steps: int, rate: Any = None, *, on_all: bool = False) -> Result:
    """Handwritten digits, 8 × 8 pixels, and a perceptron with two hidden layers."""
    images, labels = handwritten_digits()
    kept = len(images) if on_all else len(images) * 4 // 5
    optimizer = storage.wrap(AdamW(CosineAnnealingLR(2e-3, T_max=steps) if rate is None else rate, weight_decay=0.01))
    params = storage.cast(perceptron(np.random.default_rng(seed)))
    params, state = descend(optimizer, params, images[:kept], labels[:kept], jax.random.key(seed), steps)
    tested = slice(None) if on_all else slice(kept, None)
    loss = cross_entropy(optimizer.eval_params(params, state), images[tested], labels[tested])
    return Result(float(loss), bytes_per_parameter(params, state))


@functools.partial(jax.jit, static_argnames="steps")
def descend(optimizer: Any, params: Any, images: Any, labels: Any, key: Any, steps: int) -> tuple[Any, Any]:
    def step(carry: Any, key: Any) -> tuple[Any, None]:
        rows = jax.random.randint(key, (BATCH,), 0, len(images))
        grads = jax.grad(cross_entropy)(carry[0], images[rows], labels[rows])
        return optimizer.update(carry[0], grads, carry[1]), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0]


@functools.cache
def handwritten_digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return jnp.asarray(found.data[order] / 16, jnp.float32), jnp.asarray(found.target[order])


def perceptron(generator: np.random.Generator) -> list[dict[str, Any]]:
    sizes = [(64, WIDTH), (WIDTH, WIDTH), (WIDTH, 10)]
    return [{"w": generator.normal(size=size) * np.sqrt(2 / size[0]), "b": np.zeros(size[1])} for size in sizes]


def cross_entropy(params: Any, images: Any, labels: Any) -> Any:
    x = images
    for i, layer in enumerate(params):
        x = (x if i == 0 else jax.nn.relu(x)) @ layer["w"].astype(jnp.float32) + layer["b"].astype(jnp.float32)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1))
