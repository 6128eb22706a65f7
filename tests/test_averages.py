"""EMA, SWA and Lookahead, against sums written out in float64, against optax live, and against torch's swa_utils by formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import WARMUP, bits, groups, make_params

from mithril_opt import (
    EMA,
    SGD,
    SWA,
    Accumulate,
    Adam,
    AdamW,
    Clip,
    Frozen,
    Lookahead,
    MultiOptimizer,
    ReduceLROnPlateau,
    ScaleRate,
    from_state_dict,
    to_state_dict,
)

PARAMS = make_params()
AVERAGES = {
    "ema": lambda inner: EMA(inner, decay=0.75),
    "ema-debias": lambda inner: EMA(inner, decay=0.75, debias=True),
    "swa": lambda inner: SWA(inner, start=2, every=2),
    "lookahead": lambda inner: Lookahead(inner, every=2),
}


@pytest.fixture(params=AVERAGES, name="wrap")
def fixture_wrap(request):
    return AVERAGES[request.param]


def trajectory(optimizer, steps, params=PARAMS, seed=1):
    """The parameters from the first to the last, and the last state."""
    path, state, update = [params], optimizer.init(params), jax.jit(optimizer.update)
    for i in range(steps):
        params, state = update(params, make_params(jax.tree.leaves(params)[0].dtype, seed + i), state)
        path.append(params)
    return path, state


def leaves(path):
    """For each leaf of the tree its values along the path, float64 or complex128: [step, ...]."""
    wide = lambda leaf: np.asarray(leaf, np.result_type(np.asarray(leaf).dtype, np.float64))  # noqa: E731
    return [np.stack([*map(wide, column)]) for column in zip(*map(jax.tree.leaves, path), strict=True)]


def assert_close(tree, expected, rtol=1e-12, atol=1e-13):
    for actual, leaf in zip(jax.tree.leaves(tree), expected, strict=True):
        np.testing.assert_allclose(np.asarray(actual), leaf, rtol=rtol, atol=atol)


# The oracles: weights on the whole trajectory, where the code has a recurrence.


def ema_weights(t, decay, debias):
    """p₀ has the weight δᵗ, pᵢ (1 − δ) δᵗ⁻ⁱ."""
    w = np.append(decay**t, (1 - decay) * decay ** np.arange(t - 1, -1, -1.0))
    return np.append(0, w[1:] / (1 - decay**t)) if debias else w


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_ema_is_a_weighted_sum_of_all_parameters(dtype, debias, steps):
    with jax.enable_x64(True):
        optimizer = EMA(AdamW(learning_rate=0.1), decay=0.9, debias=debias)
        path, state = trajectory(optimizer, steps, make_params(dtype))
        expected = [np.tensordot(ema_weights(steps, 0.9, debias), leaf, 1) for leaf in leaves(path)]
        assert_close(optimizer.eval_params(path[-1], state), expected)


def test_ema_with_a_decay_that_grows():
    """pᵢ has the weight (1 − δᵢ) Π_{j > i} δⱼ."""
    decay = lambda t: jnp.minimum(0.75, (1 + t) / (10 + t))  # noqa: E731
    with jax.enable_x64(True):
        optimizer = EMA(SGD(learning_rate=0.1), decay=decay)
        path, state = trajectory(optimizer, 40, make_params("float64"))
        deltas = np.array([np.float32(min(0.75, (1 + t) / (10 + t))) for t in range(40)], np.float64)
        later = np.append(np.cumprod(deltas[::-1])[::-1], 1.0)
        weights = np.append(later[0], (1 - deltas) * later[1:])
        assert_close(optimizer.eval_params(path[-1], state), [np.tensordot(weights, x, 1) for x in leaves(path)], rtol=1e-7)


def test_ema_equals_optax_live():
    with jax.enable_x64(True):
        for debias in (True, False):
            optimizer, peer = EMA(SGD(learning_rate=0.1), decay=0.99, debias=debias), optax.ema(0.99, debias=debias)
            path, state = trajectory(optimizer, 50, make_params("float64"))
            # Without debias optax starts at 0, so that p₀ must be added with what weight is left.
            theirs = peer.init(path[0])
            for params in path[1:]:
                with jax.numpy_dtype_promotion("standard"):
                    average, theirs = peer.update(params, theirs)
            rest = 0.0 if debias else 0.99**50
            expected = [
                np.asarray(a) + rest * np.asarray(p) for a, p in zip(*map(jax.tree.leaves, (average, path[0])), strict=True)
            ]
            assert_close(optimizer.eval_params(path[-1], state), expected)


@pytest.mark.parametrize(("start", "every"), [(0, 1), (1, 1), (3, 4), (0, 5), (20, 3)])
def test_swa_is_a_mean(start, every):
    with jax.enable_x64(True):
        optimizer = SWA(AdamW(learning_rate=0.1), start=start, every=every)
        path, state = trajectory(optimizer, 30, make_params("float64"))
        taken = [t for t in range(1, 31) if t >= start and (t - start) % every == 0]
        assert int(state.n_averaged) == len(taken)
        assert_close(optimizer.eval_params(path[-1], state), [leaf[taken].mean(axis=0) for leaf in leaves(path)])


def test_swa_equals_torchs_running_mean():
    """AveragedModel: the first parameters are copied, then a ← a + (p − a) / (n + 1)."""
    with jax.enable_x64(True):
        optimizer = SWA(SGD(learning_rate=0.1), start=4, every=3)
        path, state = trajectory(optimizer, 20, make_params("float64"))
        expected = [leaf[4] for leaf in leaves(path)]
        for n, t in enumerate(range(7, 21, 3), start=1):
            now = [leaf[t] for leaf in leaves(path)]
            expected = [a + (p - a) / (n + 1) for a, p in zip(expected, now, strict=True)]
        assert_close(optimizer.eval_params(path[-1], state), expected)


def test_swa_before_its_first_average_is_the_parameters():
    optimizer = SWA(SGD(learning_rate=0.1), start=10, every=1)
    path, state = trajectory(optimizer, 9)
    assert bits(optimizer.eval_params(path[-1], state)) == bits(path[-1])
    path, state = trajectory(optimizer, 10)
    assert bits(optimizer.eval_params(path[-1], state)) == bits(path[-1])
    assert int(state.n_averaged) == 1


@pytest.mark.parametrize(("every", "alpha"), [(6, 0.5), (1, 0.25), (5, 0.8), (3, 1.0), (4, 0.0)])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_lookahead_equals_optax_live(every, alpha, rule):
    with jax.enable_x64(True):
        ours, theirs = {"sgd": (SGD(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)), "adam": (Adam(0.1), optax.adam(0.1))}[
            rule
        ]
        optimizer, peer = Lookahead(ours, every=every, alpha=alpha), optax.lookahead(theirs, every, alpha)
        params = make_params("float64")
        state, both = optimizer.init(params), optax.LookaheadParams.init_synced(params)
        other, step, update = peer.init(both), jax.jit(peer.update), jax.jit(optimizer.update)
        for seed in range(20):
            grads = make_params("float64", seed)
            params, state = update(params, grads, state)
            with jax.numpy_dtype_promotion("standard"):
                updates, other = step(grads, other, both)
                both = optax.apply_updates(both, updates)
            assert_close(params, jax.tree.leaves(both.fast))
            assert_close(optimizer.eval_params(params, state), jax.tree.leaves(both.slow))


def test_what_is_around_lookahead_sees_the_way_back_as_an_update():
    """Halved from outside: p ← p + ½ (φ − p) where the fast weights return."""
    optimizer, params = ScaleRate(Lookahead(SGD(learning_rate=1.0), every=2, alpha=0.5), {"*": 0.5}), {"w": jnp.float32(8.0)}
    state = optimizer.init(params)
    params, state = optimizer.update(params, {"w": jnp.float32(2.0)}, state)
    assert float(params["w"]) == 7.0
    params, state = optimizer.update(params, {"w": jnp.float32(2.0)}, state)
    assert float(state.slow["w"]) == 8.0 + 0.5 * (5.0 - 8.0)  # the fast weights of Lookahead itself are at 7 − 2
    assert float(params["w"]) == 7.0 + 0.5 * (6.5 - 7.0)


def test_lookahead_of_sgd_in_closed_form():
    """With gradients that do not depend on p: φ after j windows is p₀ − α η Σ g, and p that minus η Σ g of this window."""
    optimizer = Lookahead(SGD(learning_rate=0.5), every=3, alpha=0.25)
    params, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
    gradients = np.random.default_rng(0).normal(size=11)
    for gradient in gradients:
        params, state = optimizer.update(params, jnp.float32(gradient), state)
    slow = 1 - 0.25 * 0.5 * gradients[:9].sum()
    np.testing.assert_allclose([state.slow, params], [slow, slow - 0.5 * gradients[9:].sum()], rtol=1e-6)


# What float32 does to them.


def scanned(optimizer, params, grads):
    """Updates with `grads`, stacked along the first axis."""
    body = lambda carry, grad: (optimizer.update(carry[0], grad, carry[1]), None)  # noqa: E731
    return jax.jit(lambda p, g: jax.lax.scan(body, (p, optimizer.init(p)), g)[0])(params, grads)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_average_of_narrow_parameters_moves(dtype):
    """A parameter that jumps from 1 to 2: after 1000 updates the average is 2 − δ¹⁰⁰⁰. In bfloat16 it would stay 1."""
    optimizer = EMA(SGD(learning_rate=1.0), decay=0.9999)
    params, state = scanned(optimizer, jnp.ones((), dtype), jnp.zeros(1000, dtype).at[0].set(-1))
    assert (float(params), state.average.dtype) == (2.0, jnp.float32)
    assert float(state.average) == pytest.approx(2 - 0.9999**1000, rel=1e-6)
    average = optimizer.eval_params(params, state)
    assert (average.dtype, float(average)) == (dtype, float(state.average.astype(dtype)))


@pytest.mark.parametrize("value", [1.0, 0.1, -3.3e-5])
@pytest.mark.parametrize("decay", [0.999, 0.9999, 1 - 1e-6])
def test_the_average_of_a_constant_is_that_constant(value, decay):
    """In the form δ a + (1 − δ) p it would drift off by up to 2e-4, for float32 does not hold δ."""
    params = jnp.float32(value)
    _, state = scanned(EMA(SGD(learning_rate=1.0), decay=decay), params, jnp.zeros(5000))
    assert bits(state.average) == bits(params)
    _, state = scanned(EMA(SGD(learning_rate=1.0), decay=decay, debias=True), params, jnp.zeros(5000))
    average = EMA(SGD(), decay=decay, debias=True).eval_params(params, state)
    np.testing.assert_allclose(average, params, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.99, 0.9999, 1 - 1e-6])
def test_the_average_as_an_argument_of_jit(decay):
    """200 steps, to 1e-6 of what a closed-over optimizer gives."""
    grads = jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)
    body = lambda optimizer: lambda carry, grad: (optimizer.update(carry[0], grad, carry[1]), None)  # noqa: E731
    run = lambda optimizer: jax.lax.scan(body(optimizer), (jnp.float32(1), optimizer.init(jnp.float32(1))), grads)[0]  # noqa: E731
    optimizer = EMA(Adam(learning_rate=0.1), decay=decay, debias=True)
    read = lambda optimizer: optimizer.eval_params(*run(optimizer))  # noqa: E731
    np.testing.assert_allclose(jax.jit(read)(optimizer), jax.jit(lambda: read(optimizer))(), rtol=1e-6)


def test_a_sweep_of_decays():
    grads = jnp.asarray(np.random.default_rng(0).normal(size=10), jnp.float32)
    average = lambda decay: scanned(EMA(SGD(learning_rate=0.1), decay=decay), jnp.float32(1), grads)[1].average  # noqa: E731
    decays = jnp.array([0.5, 0.9, 0.99])
    np.testing.assert_allclose(jax.vmap(average)(decays), [average(decay) for decay in decays], rtol=1e-6)


# What moves them, and what does not.


def test_a_parameter_without_a_gradient():
    """The averages are of the trajectory, in which it stands still; Lookahead leaves what has no gradient alone."""
    params, grads = {"w": jnp.float32(1), "b": jnp.float32(2)}, {"w": jnp.float32(1), "b": None}
    for debias in (False, True):
        optimizer = EMA(SGD(learning_rate=1.0), decay=0.5, debias=debias)
        state = optimizer.init(params)._replace(average={"w": jnp.float32(0), "b": jnp.float32(0)})
        new, state = optimizer.update(params, grads, state)
        assert float(new["b"]) == 2.0
        assert float(state.average["b"]) == 1.0
    lookahead = Lookahead(SGD(learning_rate=1.0), every=1)
    state = lookahead.init(params)._replace(slow={"w": jnp.float32(0), "b": jnp.float32(0)})
    new, state = lookahead.update(params, grads, state)
    assert (float(new["b"]), float(state.slow["b"])) == (2.0, 0.0)
    assert (float(new["w"]), float(state.slow["w"])) == (0.0, 0.0)


def test_frozen_leaves_and_passengers_have_no_average(wrap):
    optimizer = wrap(MultiOptimizer({"fixed": Frozen(), "rest": SGD()}, groups={"fixed": "a", "rest": ...}))
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "n": 3, "f": jnp.tanh}
    state = optimizer.init(params)
    kept = state.slow if hasattr(state, "slow") else state.average
    assert (kept["a"], kept["n"], kept["f"]) == (None, None, None)
    new, state = optimizer.update(params, {"a": jnp.ones(2), "b": jnp.ones(2), "n": None, "f": None}, state)
    evaluated = optimizer.eval_params(new, state)
    assert all(evaluated[name] is params[name] for name in ("a", "n", "f"))


def test_the_parts_of_a_window_are_no_updates(wrap):
    """Around the accumulation and inside it, the average is the one of the same run on whole batches."""
    outside, inside, whole = wrap(Accumulate(Adam(0.1), every=3)), Accumulate(wrap(Adam(0.1)), every=3), wrap(Adam(0.1))
    (a, a_state), (b, b_state), (c, c_state) = ((PARAMS, o.init(PARAMS)) for o in (outside, inside, whole))
    for i in range(4):
        parts = [make_params(seed=10 * i + j) for j in range(3)]
        for j, grads in enumerate(parts):
            before = bits(outside.eval_params(PARAMS, a_state))
            a, a_state = outside.update(a, grads, a_state)
            b, b_state = inside.update(b, grads, b_state)
            if j < 2 and "debias" not in repr(whole) and not isinstance(whole, SWA):
                assert bits(outside.eval_params(PARAMS, a_state)) == before
        c, c_state = whole.update(c, jax.tree.map(lambda *g: sum(g[1:], g[0]) / 3, *parts), c_state)
        assert_close(outside.eval_params(a, a_state), jax.tree.leaves(whole.eval_params(c, c_state)), rtol=1e-5, atol=1e-5)
        assert_close(inside.eval_params(b, b_state), jax.tree.leaves(whole.eval_params(c, c_state)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_between_two_updates_nothing_moves(wrap, dtype):
    """To call back twice is not to call back once, where parameters are rounded."""
    optimizer, params = wrap(Accumulate(SGD(0.1), every=2)), make_params(dtype)
    state = optimizer.init(params)
    for seed in range(8):
        params, state = optimizer.update(params, make_params(dtype, seed), state)
    _, after = optimizer.update(params, params, state)
    assert bits(after._replace(optimizer=None)) == bits(state._replace(optimizer=None))


def test_a_spoiled_window_is_no_update(wrap):
    optimizer = wrap(Accumulate(SGD(0.1), every=2))
    _, state = trajectory(optimizer, 2)
    spoiled = optimizer.skip(state, jnp.int32(2))
    params, after = optimizer.update(PARAMS, PARAMS, spoiled)
    assert bits(params) == bits(PARAMS)
    assert bits(after._replace(optimizer=None)) == bits(state._replace(optimizer=None))


# Which of them is read.


AROUND = {
    "bare": lambda o: o,
    "clip": lambda o: Clip(o, clip_norm=1.0),
    "accumulate": lambda o: Accumulate(o, every=1),
    "multi": lambda o: MultiOptimizer({"all": o}, groups={"all": ...}),
    "nested": lambda o: Clip(MultiOptimizer({"all": Accumulate(o, every=1)}, groups={"all": "*"}), clip_value=1e3),
}


@pytest.mark.parametrize("around", AROUND)
def test_eval_params_come_through_wrappers_jit_and_checkpoints(wrap, around):
    optimizer = AROUND[around](wrap(SGD(learning_rate=WARMUP)))
    path, state = trajectory(optimizer, 5)
    saved = {name: np.asarray(value) for name, value in to_state_dict(state).items()}
    restored = from_state_dict(jax.eval_shape(optimizer.init, PARAMS), saved)
    expected = optimizer.eval_params(path[-1], state)
    assert bits(optimizer.eval_params(path[-1], restored)) == bits(expected)
    assert bits(jax.jit(optimizer.eval_params)(path[-1], state)) == bits(jax.jit(optimizer.eval_params)(path[-1], restored))
    assert bits(expected) != bits(path[-1])
    direct = wrap(SGD(learning_rate=WARMUP))
    if around in ("bare", "accumulate", "multi"):
        alone, own = trajectory(direct, 5)
        assert_close(expected, jax.tree.leaves(direct.eval_params(alone[-1], own)), rtol=1e-6, atol=1e-7)


def test_each_group_its_own_average():
    optimizer = groups(EMA(SGD(learning_rate=0.5), decay=0.5), SGD(learning_rate=0.5))
    params, state = optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS))
    evaluated = optimizer.eval_params(params, state)
    assert bits(evaluated["body"]) == bits(params["body"])
    np.testing.assert_allclose(evaluated["embed"], 0.75 * PARAMS["embed"], rtol=1e-6)


def test_the_outermost_average_is_read():
    optimizer = EMA(Lookahead(SGD(learning_rate=0.1), every=2), decay=0.5)
    path, state = trajectory(optimizer, 3)
    assert bits(optimizer.eval_params(path[-1], state)) == bits(state.average)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_eval_params_are_in_the_dtypes_of_the_parameters(wrap, dtype):
    optimizer, params = wrap(SGD(learning_rate=0.1)), make_params(dtype)
    for steps in (0, 3):
        path, state = trajectory(optimizer, steps, params)
        evaluated = optimizer.eval_params(path[-1], state)
        assert [leaf.dtype for leaf in jax.tree.leaves(evaluated)] == [leaf.dtype for leaf in jax.tree.leaves(params)]
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(evaluated))


def test_before_the_first_update_eval_params_are_the_parameters(wrap):
    optimizer = wrap(SGD())
    assert bits(optimizer.eval_params(PARAMS, optimizer.init(PARAMS))) == bits(PARAMS)


# What the state holds.


def test_names_and_bytes_of_the_state(wrap):
    optimizer = wrap(SGD())
    names = [name for name in to_state_dict(optimizer.init(PARAMS)) if name.endswith("embed")]
    assert names == ["slow/embed"] if isinstance(optimizer, Lookahead) else names == ["average/embed"]
    table = MultiOptimizer({"all": optimizer}, groups={"all": ...}).describe(PARAMS)
    assert {row[0]: row[-1] for row in table.rows}["embed"] == 4 * 12
    wide = wrap(SGD()).init(make_params("bfloat16"))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(wide) if leaf.shape == (4, 3)) == 4 * 12


@pytest.mark.parametrize("saved", AVERAGES)
@pytest.mark.parametrize("read", AVERAGES)
def test_one_average_is_not_another(saved, read):
    if saved != read:
        mapping = to_state_dict(AVERAGES[saved](SGD()).init(PARAMS))
        with pytest.raises(ValueError, match="the saved state is another rule's, or one with other switches"):
            from_state_dict(AVERAGES[read](SGD()).init(PARAMS), mapping)


def test_the_average_of_other_parameters(wrap):
    optimizer, params = wrap(SGD()), {"w": jnp.ones(2)}
    state = optimizer.init({"w": jnp.ones(3)})
    message = (
        r"the state does not belong .* at 'w' the parameter is float32\[2\] but the (average|slow weights) in the state is"
    )
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, params, state)
    with pytest.raises(ValueError, match=message):
        optimizer.eval_params(params, state)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EMA(SGD(), decay=1.0), ValueError, r"EMA: decay must be a number in \[0, 1\) or a schedule, got 1.0"),
        (lambda: EMA(SGD(), decay=-0.1), ValueError, "EMA: decay must be"),
        (lambda: EMA(SGD(), decay=lambda t: 0.5, debias=True), ValueError, "debias corrects for a constant decay"),
        (lambda: EMA(SGD(), decay=ReduceLROnPlateau(0.5)), ValueError, "EMA: decay cannot follow a metric"),
        (lambda: EMA(SGD(), debias=1), TypeError, "debias must be True or False"),
        (lambda: EMA("sgd"), TypeError, "EMA: optimizer must be an Optimizer"),
        (lambda: SWA(SGD(), start=-1, every=1), ValueError, "SWA: start must be an integer of at least 0"),
        (lambda: SWA(SGD(), start=0, every=0), ValueError, "SWA: every must be an integer of at least 1"),
        (lambda: SWA(SGD(), start=0, every=1.5), ValueError, "SWA: every must be an integer of at least 1"),
        (lambda: Lookahead(SGD(), every=0), ValueError, "Lookahead: every must be an integer of at least 1"),
        (lambda: Lookahead(SGD(), alpha=1.5), ValueError, r"Lookahead: alpha must be a number in \[0, 1\]"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
