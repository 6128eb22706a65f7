"""Names of leaves: only the `value` of nnx's own variables is no part of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx, struct
from zoo import bits

from mithril_opt import SGD, Adam, Frozen, MultiOptimizer, explain, from_state_dict, to_state_dict
from mithril_opt.core.tree import leaves_with_paths


class Attention(NamedTuple):
    query: Any
    key: Any
    value: Any


@struct.dataclass
class Node:
    value: Any
    weight: Any


def paths(tree):
    return [path for path, _ in leaves_with_paths(tree)]


def test_a_field_called_value_is_part_of_the_path():
    params = {
        "attn": Attention(*(jnp.full(2, 1.0 + i) for i in range(3))),
        "value": jnp.ones(2),
        "node": Node(jnp.ones(1), jnp.ones(1)),
    }
    assert paths(params) == ["attn/query", "attn/key", "attn/value", "node/value", "node/weight", "value"]
    multi = MultiOptimizer({"attn": SGD(1.0), "rest": Frozen()}, groups={"attn": "attn/*", "rest": ...})
    new, _ = multi.update(params, jax.tree.map(jnp.ones_like, params), multi.init(params))
    assert [float(leaf[0]) for leaf in new["attn"]] == [0.0, 1.0, 2.0]
    assert len(explain(multi, params, 10).rows) == 6


def test_every_leaf_has_a_name_of_its_own_in_a_checkpoint():
    params = {"a": Attention(jnp.ones(1), jnp.ones(2), jnp.ones(3)), "a/value": jnp.ones(4)}
    with pytest.raises(ValueError, match="several leaves have the same path: a/value"):
        to_state_dict(params)
    state = Adam().init({"a": params["a"]})
    saved = to_state_dict(state)
    assert {"slots/mu/a/query", "slots/mu/a/key", "slots/mu/a/value"} <= set(saved)
    assert bits(from_state_dict(state, saved)) == bits(state)


def test_variables_of_nnx_have_the_names_of_the_modules():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.value = nnx.Linear(2, 2, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(2))

    params = nnx.state(Block(nnx.Rngs(0)), nnx.Param)
    assert paths(params) == ["scale", "value/bias", "value/kernel"]
    assert paths(nnx.to_pure_dict(params)) == ["scale", "value/bias", "value/kernel"]
    assert paths(Adam().init(params).slots.mu) == ["scale", "value/bias", "value/kernel"]
    saved = to_state_dict(Adam().init(params))
    assert "slots/mu/value/kernel" in saved


def test_an_error_names_a_field_called_value():
    params = {"attn": Attention(jnp.ones(2), jnp.ones(2), jnp.ones(2))}
    grads = {"attn": Attention(jnp.ones(2), jnp.ones(2), jnp.ones(3))}
    with pytest.raises(ValueError, match=r"at 'attn/value' the parameter is float32\[2\] but the gradient is float32\[3\]"):
        SGD().update(params, grads, SGD().init(params))
