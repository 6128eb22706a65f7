"""What every schedule must do, tested on every row of the table."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import SCHEDULES, bits, make_params, specs

from mithril_opt import SGD

LAST = 2**31 - 1


@pytest.fixture(params=SCHEDULES, name="schedule")
def fixture_schedule(request):
    return SCHEDULES[request.param]()


def floats(schedule):
    """The schedule's real numbers as a vector, and a function that puts such a vector back."""
    leaves, structure = jax.tree.flatten(schedule)
    numbers = [leaf for leaf in leaves if isinstance(leaf, float)]

    def put_back(vector):
        rest = iter(vector)
        return structure.unflatten([next(rest) if isinstance(leaf, float) else leaf for leaf in leaves])

    return jnp.asarray(numbers, jnp.float32), put_back


def test_a_float32_scalar_whatever_the_kind_of_step(schedule):
    jitted = jax.jit(schedule)
    for step in (0, 7, LAST):
        kinds = [schedule(step), schedule(np.int64(step)), schedule(np.int32(step)), schedule(jnp.int32(step)), jitted(step)]
        for value in kinds:
            assert (value.dtype, value.shape, value.weak_type) == (jnp.float32, (), False)
            np.testing.assert_allclose(value, kinds[0], rtol=1e-6)
            assert np.isfinite(value)


def test_vectors_of_steps(schedule):
    steps = np.array([[0, 1, 2], [3, 50, LAST]])
    together = schedule(jnp.asarray(steps, jnp.int32))
    assert together.shape == steps.shape
    apart = jax.jit(schedule)
    np.testing.assert_allclose(together.ravel(), [apart(int(step)) for step in steps.ravel()], rtol=1e-6)
    assert schedule(jnp.zeros((0,), jnp.int32)).shape == (0,)


def test_negative_steps_count_as_zero(schedule):
    assert bits(schedule(-5)) == bits(schedule(0))
    assert bits(schedule(jnp.int32(-(2**31)))) == bits(schedule(0))


def test_steps_past_int32_count_as_the_last(schedule):
    assert bits(schedule(2**40)) == bits(schedule(LAST))
    assert bits(schedule(np.uint32(2**32 - 1))) == bits(schedule(LAST))


@pytest.mark.parametrize("step", [1.0, 0.5, True, "3", np.float32(2)])
def test_a_step_is_an_integer(schedule, step):
    with pytest.raises(TypeError, match="integer step"):
        schedule(step)


def test_derivatives_are_finite_everywhere(schedule):
    numbers, put_back = floats(schedule)
    steps = jnp.array([*range(45), 1000, 2**24 + 1, LAST], jnp.int32)
    slopes = jax.jit(jax.jacobian(lambda numbers: put_back(numbers)(steps)))(numbers)
    assert np.isfinite(slopes).all()


def test_as_an_argument_equal_to_closed_over_in_one_trace_for_changed_numbers(schedule):
    steps, traces = np.arange(160), []

    @jax.jit
    def values(schedule):
        traces.append(None)
        return schedule(steps)

    numbers, put_back = floats(schedule)
    for scale in (1.0, 0.9):
        changed = put_back([float(number) * scale for number in numbers])
        np.testing.assert_allclose(values(changed), changed(steps), rtol=1e-5, atol=1e-8)
    assert len(traces) == 1


def test_vmap_over_the_numbers(schedule):
    numbers, put_back = floats(schedule)
    scales = np.array([1.0, 0.5], np.float32)
    together = jax.jit(jax.vmap(lambda scale: put_back(numbers * scale)(5)))(scales)
    apart = [put_back([float(number) * float(scale) for number in numbers])(5) for scale in scales]
    np.testing.assert_allclose(together, apart, rtol=1e-5)


def test_pickle_equality_and_repr(schedule):
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert repr(copy) == repr(schedule)
    assert repr(schedule).startswith(type(schedule).__name__ + "(")


def test_drives_an_optimizer(schedule):
    optimizer = SGD(learning_rate=schedule)
    params = make_params()
    state = optimizer.init(params)
    rates = []
    for _ in range(4):
        rates.append(float(optimizer.get_learning_rate(state)))
        before, (params, state) = params, optimizer.update(params, params, state)
        np.testing.assert_allclose(params["embed"], before["embed"] * (1 - rates[-1]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rates, schedule(np.arange(4)), rtol=1e-6)
    elsewhere = state._replace(step=jnp.int32(2))
    np.testing.assert_allclose(optimizer.get_learning_rate(elsewhere), rates[2], rtol=1e-6)


def test_in_a_scan_and_restored_in_the_middle_it_gives_the_same_rest_of_the_curve(schedule):
    optimizer = SGD(learning_rate=schedule)

    @jax.jit
    def run(state, metrics):
        def advance(state, metric):
            rate = optimizer.get_learning_rate(state)
            _, state = optimizer.update(jnp.float32(1), jnp.float32(1), optimizer.observe(state, metric))
            return state, rate

        return jax.lax.scan(advance, state, metrics)

    start = optimizer.init(jnp.float32(1))
    metrics = np.abs(np.sin(np.arange(25.0, dtype=np.float32)))
    middle, first_half = run(start, metrics)
    restored = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.tree.map(np.asarray, middle))))
    assert bits(run(restored, metrics)) == bits(run(middle, metrics))
    assert specs(middle) == specs(start) == specs(restored)
    if schedule.init() is None:
        np.testing.assert_allclose([*first_half, *run(middle, metrics)[1]], schedule(np.arange(160))[:50], rtol=1e-6)


def test_an_optimizer_in_the_first_place_gets_the_line_to_write(schedule):
    name, fields = type(schedule).__name__, list(type(schedule).__dataclass_fields__)
    rate = "0.001, " if "base_lr" in fields and "max_lr" not in fields else ""
    arguments = [getattr(schedule, name) for name in fields]
    line = re.compile(rf"Write Adam\(learning_rate={name}\({rate}(.*)\)\) instead of {name}\(optimizer, (.*)\)$")
    for call in ((SGD(), *arguments[1:]), (SGD(), *arguments)):  # as many arguments as ours takes, or as PyTorch's
        if len(call) > 1:
            with pytest.raises(TypeError, match=line) as raised:
                type(schedule)(*call)
            ours, theirs = line.search(str(raised.value)).groups()
            assert re.sub(r", \w+=\.\.\.", "", ours) == theirs  # what PyTorch's call lacks
