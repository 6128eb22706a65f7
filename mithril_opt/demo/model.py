"""A small pre-norm transformer with tied embeddings, in plain JAX: a dictionary of arrays and functions of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.typing import Array

VOCABULARY = 4096
WIDTH = 128
LAYERS = 2
HEADS = 4
CONTEXT = 64

Params = dict[str, Any]


def init(generator: np.random.Generator) -> Params:
    """Fresh parameters: normal matrices and unit scales, all float32."""
    return {
        "embedding": {
            "token": _normal(generator, (VOCABULARY, WIDTH), 0.02),
            "position": _normal(generator, (CONTEXT, WIDTH), 0.02),
        },
        "blocks": [_init_block(generator) for _ in range(LAYERS)],
        "norm": jnp.ones(WIDTH, jnp.float32),
    }


def _init_block(generator: np.random.Generator) -> Params:
    residual = (2 * LAYERS) ** -0.5  # each block adds two branches to the residual stream
    return {
        "attention_norm": jnp.ones(WIDTH, jnp.float32),
        "qkv": _normal(generator, (WIDTH, 3 * WIDTH), WIDTH**-0.5),
        "out": _normal(generator, (WIDTH, WIDTH), residual * WIDTH**-0.5),
        "mlp_norm": jnp.ones(WIDTH, jnp.float32),
        "up": _normal(generator, (WIDTH, 4 * WIDTH), WIDTH**-0.5),
        "down": _normal(generator, (4 * WIDTH, WIDTH), residual * (4 * WIDTH) ** -0.5),
    }


def _normal(generator: np.random.Generator, shape: tuple[int, int], deviation: float) -> Array:
    return jnp.asarray(generator.normal(0.0, deviation, shape), jnp.float32)


def apply(params: Params, tokens: Array) -> Array:
    """The logits of every next token.

    Args:
        params: what `init` returned, in any floating dtype.
        tokens: int32[batch, time], with time ≤ CONTEXT.

    Returns:
        [batch, time, vocabulary] in the dtype of the parameters; those at time t depend on the tokens up to t alone.
    """
    embedding = params["embedding"]
    x = embedding["token"][tokens] + embedding["position"][None, : tokens.shape[1]]
    for block in params["blocks"]:
        x = x + _attention(block, _rms_norm(x, block["attention_norm"]))
        x = x + jax.nn.gelu(_rms_norm(x, block["mlp_norm"]) @ block["up"]) @ block["down"]
    return _rms_norm(x, params["norm"]) @ embedding["token"].T


def _attention(block: Params, x: Array) -> Array:
    """Causal self-attention of [batch, time, WIDTH]; the weights are computed in float32."""
    batch, time, _ = x.shape
    q, k, v = jnp.split((x @ block["qkv"]).reshape(batch, time, HEADS, -1), 3, axis=-1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) / math.sqrt(q.shape[-1])
    past = jnp.tri(time, dtype=bool)[None, None]
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1).astype(x.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, time, WIDTH) @ block["out"]


def _rms_norm(x: Array, scale: Array) -> Array:
    """`x / rms(x)` along the last axis, times `scale`; the mean square is taken in float32."""
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + 1e-6).astype(x.dtype) * scale[None, None]


def loss(params: Params, windows: Array) -> Array:
    """The mean cross-entropy of predicting each token from those before it: float32 scalar, nats.

    Args:
        params: what `init` returned.
        windows: int32[batch, time + 1]; the last token of a window is a target only.
    """
    inputs, targets = windows[:, :-1], windows[:, 1:]
    logits = apply(params, inputs).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def count() -> dict[str, int]:
    """How many numbers the embedding and the body hold."""
    params = init(np.random.default_rng(0))
    total, embedding = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, params["embedding"]))
    return {"embedding": embedding, "body": total - embedding}
