"""Several optimizers as one."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import bits, make_params

from mithril_opt import SGD, Adam, AdamW, Clip, CosineAnnealingLR, Frozen, MultiOptimizer, clip_gradients, from_optax

PARAMS = make_params()
GRADS = make_params(seed=1)


def two(embedding, body, pattern="embed"):
    return MultiOptimizer({"embedding": embedding, "body": body}, groups={"embedding": pattern, "body": ...})


def test_equals_training_the_groups_apart_to_the_bit():
    embedding, body = Adam(learning_rate=CosineAnnealingLR(0.1, T_max=7)), AdamW(learning_rate=0.05)
    together, state = PARAMS, two(embedding, body).init(PARAMS)
    apart = {"embed": PARAMS["embed"]}, {"body": PARAMS["body"]}
    states = embedding.init(apart[0]), body.init(apart[1])
    for seed in range(1, 11):
        grads = make_params(seed=seed)
        together, state = two(embedding, body).update(together, grads, state)
        first, second = (
            embedding.update(apart[0], {"embed": grads["embed"]}, states[0]),
            body.update(apart[1], {"body": grads["body"]}, states[1]),
        )
        apart, states = (first[0], second[0]), (first[1], second[1])
    assert bits(together) == bits({**apart[0], **apart[1]})
    assert int(state.step) == int(states[0].step) == 10


ONE_OF_THREE = [
    ["nothing", "emb*"],
    [re.compile("nothing"), lambda path, leaf: path == "embed"],
    ("none", ["nothing", "embed"]),
]


@pytest.mark.parametrize(
    "pattern", ["em*", re.compile("^emb"), lambda path, leaf: leaf.ndim == 2 and path == "embed", *ONE_OF_THREE]
)
def test_patterns(pattern):
    table = two(Adam(), SGD(), pattern).describe(PARAMS)
    assert {row[0]: row[3] for row in table.rows} == {
        "body/b/0": "body", "body/b/1": "body", "body/w": "body", "embed": "embedding",
    }  # fmt: skip


def test_describe_counts_the_bytes_of_the_state():
    multi = two(Adam(amsgrad=True), SGD(momentum=0.9), "embed")
    sizes = {row[0]: row[5] for row in multi.describe(PARAMS).rows}
    assert sizes == {"embed": 12 * 4 * 3, "body/w": 6 * 4, "body/b/0": 3 * 4, "body/b/1": 4}
    assert "embed     (4, 3)  float32  embedding  Adam               144" in str(multi.describe(PARAMS))


def test_one_clock_that_can_be_set():
    multi = two(Adam(learning_rate=CosineAnnealingLR(1.0, T_max=10)), SGD(learning_rate=0.5))
    rates = multi.get_learning_rate(multi.init(PARAMS)._replace(step=jnp.int32(10)))
    assert {name: float(rate) for name, rate in rates.items()} == {"embedding": 0.0, "body": 0.5}


def test_a_group_that_keeps_its_rate_to_itself_is_left_out():
    multi = two(from_optax(optax.sgd(0.1)), SGD(learning_rate=0.5))
    state = multi.init(PARAMS)
    assert {name: float(rate) for name, rate in multi.get_learning_rate(state).items()} == {"body": 0.5}
    assert {name: float(rate) for name, rate in multi.learning_rates(state).items()} == {"body": 0.5}
    alone = from_optax(optax.sgd(0.1))
    assert alone.learning_rates(alone.init(PARAMS)) == {}


def test_nested_groups_are_called_by_both_names():
    inner = MultiOptimizer({"learning_rate": SGD(0.1), "w": SGD(0.2)}, groups={"learning_rate": "*/b/*", "w": ...})
    multi = two(SGD(0.3), Clip(inner, clip_norm=1.0))
    rates = multi.learning_rates(multi.init(PARAMS))
    assert list(rates) == ["embedding", "body/learning_rate", "body/w"] == multi.group_names
    assert [float(rate) for rate in rates.values()] == pytest.approx([0.3, 0.1, 0.2])


def test_two_groups_of_one_name():
    inner = MultiOptimizer({"w": SGD(), "b": SGD()}, groups={"w": "body/w", "b": ...})
    with pytest.raises(ValueError, match="two groups are then called 'body/w'"):
        MultiOptimizer({"body": inner, "body/w": SGD()}, groups={"body": "body/*", "body/w": ...})


def test_frozen_leaves_do_not_move_and_do_not_count_in_the_norm():
    multi = two(Frozen(), SGD(learning_rate=1.0))
    huge = {**GRADS, "embed": jnp.full((4, 3), 1e10)}
    clipped = clip_gradients(multi.drop_frozen(PARAMS, huge), clip_norm=1.0)
    expected = clip_gradients({"body": GRADS["body"]}, clip_norm=1.0)
    assert clipped["embed"] is None
    assert bits(clipped["body"]) == bits(expected["body"])
    params, state = multi.update(PARAMS, clipped, multi.init(PARAMS))
    assert params["embed"] is PARAMS["embed"]
    assert state.slots["embedding"] is None


def test_a_group_may_have_no_gradients_at_all():
    multi = two(Frozen(), SGD(learning_rate=1.0))
    body_only = {**GRADS, "embed": None}
    assert multi.drop_frozen(PARAMS, body_only)["embed"] is None
    nothing = jax.tree.map(lambda leaf: None, GRADS)
    assert jax.tree.leaves(multi.drop_frozen(PARAMS, nothing)) == []


def test_may_be_a_static_argument():
    step = jax.jit(lambda multi, params, state: multi.update(params, GRADS, state)[0], static_argnums=0)
    for _ in range(2):
        multi = two(Adam(), SGD(learning_rate=0.5), ["embed", re.compile("nothing")])
        step(multi, PARAMS, multi.init(PARAMS))
    assert step._cache_size() == 1


def test_nan_in_a_frozen_leaf_stays_where_it_is():
    multi = two(Frozen(), SGD(learning_rate=1.0))
    params = {**PARAMS, "embed": jnp.full((4, 3), jnp.nan)}
    new_params, _ = multi.update(params, {**GRADS, "embed": jnp.full((4, 3), jnp.nan)}, multi.init(params))
    assert bits(new_params["embed"]) == bits(params["embed"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new_params["body"]))


def test_decay_masks_see_the_whole_path():
    seen = []

    def mask(path, leaf):
        seen.append(path)
        return True

    multi = two(Frozen(), SGD(weight_decay=0.1, decay_mask=mask))
    multi.update(PARAMS, GRADS, multi.init(PARAMS))
    assert set(seen) == {"body/b/0", "body/b/1", "body/w"}


ERRORS = [
    (
        lambda: two(Adam(), SGD(), "nothing/*").init(PARAMS),
        ValueError,
        r"nothing belongs to the groups \['embedding'\].*paths are body/b/0",
    ),
    (
        lambda: MultiOptimizer({"a": SGD(), "b": SGD()}, groups={"a": "embed", "b": "body/w"}).init(PARAMS),
        ValueError,
        r"'body/b/0' \(float32\[3\]\) belongs to no group",
    ),
    (
        lambda: MultiOptimizer({"a": SGD(), "b": SGD()}, groups={"a": "*", "b": "embed"}).init(PARAMS),
        ValueError,
        r"'embed' \(float32\[4,3\]\) belongs to the groups \['a', 'b'\]",
    ),
    (lambda: MultiOptimizer({"a": SGD()}, groups={"b": "*"}), ValueError, r"the same names, got \['a'\] and \['b'\]"),
    (lambda: MultiOptimizer({}, groups={}), ValueError, "the same names"),
    (lambda: MultiOptimizer({"a": 0.1}, groups={"a": ...}), TypeError, r"optimizers\['a'\] must be an Optimizer, got 0.1"),
    (lambda: MultiOptimizer({"a": SGD()}, groups={"a": 3}), TypeError, r"groups\['a'\] must be a glob, .* got 3"),
    (lambda: MultiOptimizer({"a": SGD()}, groups={"a": []}), TypeError, r"groups\['a'\] must be a glob, .* got \[\]"),
    (lambda: MultiOptimizer({"a": SGD()}, groups={"a": ["w", 3]}), TypeError, r"groups\['a'\]\[1\] must be a glob, .* got 3"),
    (lambda: MultiOptimizer({"a": SGD()}, groups={"a": ["w", ...]}), TypeError, r"groups\['a'\]\[1\] must be .* got Ellipsis"),
    (
        lambda: MultiOptimizer({"a": SGD(), "b": SGD()}, {"a": ["w", "e*"], "b": [re.compile("embed"), "body*"]}).init(PARAMS),
        ValueError,
        r"'embed' \(float32\[4,3\]\) belongs to the groups \['a', 'b'\]",
    ),
    (
        lambda: MultiOptimizer({"a": SGD(), "b": SGD()}, groups={"a": ..., "b": ...}),
        ValueError,
        r"at most one group may be '...'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), ERRORS)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


LABELS = {"embed": "embedding", "body": {"w": "rest", "b": ["rest", "embedding"]}}


@pytest.mark.parametrize("labels", [LABELS, {**LABELS, "body": "rest"}])
def test_a_tree_of_labels_gets_the_line_to_write(labels):
    """The line makes the groups that optax would."""
    optimizers = {"embedding": Adam(), "rest": SGD()}
    with pytest.raises(TypeError, match=r"where optax has a tree of names; write groups=\{'embedding'") as caught:
        MultiOptimizer(optimizers, groups=labels)
    multi = MultiOptimizer(optimizers, **eval(f"dict({str(caught.value).partition('; write ')[2]})"))
    whole = jax.tree.map(lambda label, below: jax.tree.map(lambda _: label, below), labels, PARAMS)
    assert multi.owners(PARAMS) == jax.tree.leaves(whole)


def test_labels_of_paths_that_look_like_globs():
    optimizers, labels = {"a": Adam(), "b": SGD()}, {"w[0]": "a", "w*": "b"}
    with pytest.raises(TypeError) as caught:
        MultiOptimizer(optimizers, groups=labels)
    multi = MultiOptimizer(optimizers, **eval(f"dict({str(caught.value).partition('; write ')[2]})"))
    assert multi.owners(dict.fromkeys(labels, jnp.ones(2))) == ["b", "a"]


def test_labels_that_are_long_or_a_function_get_predicates():
    optimizers = {"matrices": Adam(), "rest": SGD()}
    for labels in ({f"layer {i}": "rest" for i in range(100)}, lambda params: jax.tree.map(lambda _: "rest", params)):
        with pytest.raises(TypeError, match="MultiOptimizer: groups say for each name which") as caught:
            MultiOptimizer(optimizers, groups=labels)
        multi = MultiOptimizer(optimizers, **eval(f"dict({str(caught.value).partition('; write ')[2]})"))
        assert multi.owners(PARAMS) == ["rest", "rest", "matrices", "matrices"]


def test_groups_that_are_called_like_leaves_are_no_labels():
    multi = MultiOptimizer({"embed": SGD(), "body": SGD()}, groups={"embed": ["embed"], "body": "body*"})
    assert multi.owners(PARAMS) == ["body", "body", "body", "embed"]
    assert dataclasses.replace(MultiOptimizer({"embed": SGD()}, groups={"embed": "embed"})).group_names == ["embed"]


MASKS = [{"embed": True, "body": {"w": True, "b": [False, False]}}, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)]


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_of_optax_gets_the_line_to_write(mask):
    line = "decay_mask=lambda path, leaf: leaf.ndim > 1"
    with pytest.raises(TypeError, match=f"AdamW: decay_mask must be a function .*; .*write {line}") as caught:
        AdamW(decay_mask=mask)
    assert str(caught.value).endswith(line)
    rule = AdamW(**eval(f"dict({line})"))
    assert [bool(rule.decays(path, leaf)) for path, leaf in (("embed", PARAMS["embed"]), ("b", jnp.ones(2)))] == [True, False]
    for other in (dict, isinstance, functools.partial(lambda a, path, leaf: a, True)):  # which may take two arguments
        AdamW(decay_mask=other)


def test_patterns_are_checked_on_update_too():
    multi = two(Adam(), SGD())
    state = multi.init(PARAMS)
    other = {"other": jnp.ones(3)}
    with pytest.raises(ValueError, match="nothing belongs to the groups"):
        multi.update(other, other, state)
