"""Float32 in fewer bits: what is on the grid stays, what is not zero is not zero, and means are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import bits as bits_of

from mithril_opt.core.coding import (
    Coded,
    _largest_in_steps,
    _largest_in_tiles,
    _spread_at_once,
    _spread_in_tiles,
    _upper_half,
    _upper_half_by_uint16,
    block_of,
    decode,
    encode,
    join,
    split,
    thresholds,
    to_bfloat16,
)

SHAPES = [(64, 512), (3000,), (3, 3, 64, 128), (1000,), (7, 130), (5, 1000), (30, 997), (0, 128), (4, 0)]
UGLY = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4e38, 1e-45, -1e-45, 1.2e-38, 1.0, -1.0]


def numbers(shape, decades=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-decades, decades, shape), jnp.float32)


def ugly():
    return jnp.concatenate([jnp.array(UGLY, jnp.float32), numbers(4000, decades=30)])


def test_the_thresholds_are_a_weyl_sequence():
    theta = np.asarray(thresholds((2, 3), 5, 7))
    flat = [(i * 0x9E3779B9 + 5 * 0xC13FA9A9 + 7) % 2**32 for i in range(6)]
    assert theta.ravel().tolist() == flat


@pytest.mark.parametrize("axis", ["step", "position"])
def test_the_thresholds_are_spread_evenly(axis):
    """Of any 1000 in a row each tenth of the range has 100, to within 3: true randomness would be off by 10."""
    in_time = jax.vmap(lambda step: thresholds((1,), step, 3))(jnp.arange(1000)).ravel()
    theta = in_time if axis == "step" else thresholds((1000,), 1, 3)
    counts, _ = np.histogram(np.asarray(theta) / 2**32, bins=10, range=(0, 1))
    assert np.abs(counts - 100).max() <= 3


@pytest.mark.parametrize("step", range(4))
def test_bfloat16_is_one_of_the_neighbours(step):
    x = ugly()
    stored = np.asarray(to_bfloat16(x, thresholds(x.shape, step, 0)).astype(jnp.float32), np.float64)
    exact = np.asarray(x, np.float64)
    ordinary = np.isfinite(exact) & (np.abs(exact) >= 2.0**-126) & (np.abs(exact) < 3.38e38)
    unit = 2.0 ** (np.floor(np.log2(np.abs(exact[ordinary]))) - 7)
    assert (np.abs(stored[ordinary] - exact[ordinary]) < unit).all()
    assert (np.sign(stored) == np.sign(exact))[~np.isnan(exact)].all()  # what is not zero is not zero
    assert (np.isfinite(stored) == np.isfinite(exact)).all()
    assert (np.isnan(stored) == np.isnan(exact)).all()


@pytest.mark.parametrize("bits", [0, 8, 16])
def test_what_is_on_the_grid_stays(bits):
    x = ugly()
    once = split(x, bits, thresholds(x.shape, 3, 7))
    for step in range(5):
        again = split(join(*once), bits, thresholds(x.shape, step, 9))
        assert bits_of([leaf for leaf in again if leaf is not None]) == bits_of([leaf for leaf in once if leaf is not None])


def test_bfloat16_and_sixteen_bits_are_float32():
    x = ugly()
    param, remainder = split(x, 16, thresholds(x.shape, 0, 0))
    same = np.asarray(join(param, remainder)).view(np.uint32) == np.asarray(x).view(np.uint32)
    assert same[~np.isnan(x)].all()
    assert np.isnan(join(param, remainder))[np.isnan(x)].all()
    nearest = np.asarray(x[12:].astype(jnp.bfloat16).astype(jnp.float32))
    assert (np.abs(np.asarray(param[12:].astype(jnp.float32)) - x[12:]) == np.abs(nearest - x[12:])).all()


def test_eight_bits_make_a_number_of_sixteen():
    """A sign, 8 bits of exponent and 15 of mantissa: off by less than 2⁻¹⁵, and finite where x is."""
    x = ugly()
    back = np.asarray(join(*split(x, 8, thresholds(x.shape, 0, 0))), np.float64)
    exact = np.asarray(x, np.float64)
    ordinary = np.isfinite(exact) & (np.abs(exact) >= 2.0**-126)
    assert (np.abs(back[ordinary] - exact[ordinary]) < 2.0**-15 * np.abs(exact[ordinary])).all()
    assert (np.isfinite(back) == np.isfinite(exact)).all()
    assert (np.isnan(back) == np.isnan(exact)).all()


def largest(x):
    block = block_of(x.shape)
    return np.abs(x).reshape(*x.shape[:-1], x.shape[-1] // block, block).max(-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_have_the_shape_and_scales_the_largest_of_each_block(shape):
    x = numbers(shape)
    coded = encode(x, thresholds(shape, 0, 0))
    assert (coded.codes.shape, coded.codes.dtype, coded.scales.dtype) == (shape, jnp.int8, jnp.float32)
    np.testing.assert_array_equal(coded.scales, largest(x))
    repeated = np.repeat(coded.scales, block_of(shape), axis=-1)
    np.testing.assert_array_equal(_spread_at_once(coded.scales, shape), repeated)
    np.testing.assert_array_equal(_spread_in_tiles(coded.scales, shape), repeated)


def test_blocks():
    assert [block_of((3, n)) for n in (1, 255, 256, 257, 512, 1000, 768, 4099)] == [1, 255, 256, 1, 256, 250, 256, 1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_on_the_grid_stay(shape):
    once = encode(numbers(shape), thresholds(shape, 1, 0))
    for step in range(5):
        assert bits_of(encode(decode(once), thresholds(shape, step, 5))) == bits_of(once)


def test_every_code_stays_whatever_the_scale():
    """All 127 of them under scales over the whole range: rounding in the roots and the products never moves one."""
    codes = jnp.tile(jnp.arange(1, 128, dtype=jnp.int8), (200, 1))
    scales = jnp.asarray(10.0 ** np.random.default_rng(0).uniform(-29, 38, (200, 1)), jnp.float32)
    scales = scales.at[:2, 0].set(jnp.float32([2.0**-98, 3.4e38]))
    x = jax.vmap(lambda codes, scales: decode(Coded(codes, scales)))(codes, scales)
    for step in range(5):
        coded = jax.vmap(lambda x, step=step: encode(x, thresholds((127,), step, 0)))(x)
        np.testing.assert_array_equal(coded.codes, codes)
        np.testing.assert_array_equal(coded.scales, scales)


def test_the_largest_of_a_block_is_exact_and_nothing_becomes_zero():
    x = numbers((16, 512), decades=8)
    back = np.asarray(decode(encode(x, thresholds(x.shape, 0, 0))))
    blocks, kept = (np.asarray(a).reshape(32, 256) for a in (x, back))
    where = np.abs(blocks).argmax(axis=1)
    np.testing.assert_array_equal(kept[range(32), where], blocks[range(32), where])
    assert (np.sign(back) == np.sign(x)).all()


@pytest.mark.parametrize("largest", [3.4e38, 1e38, 8.6e37, 1e-28, 2e-30, 1e-34, 1.2e-38])
def test_codes_of_the_largest_and_the_smallest_numbers(largest):
    """Whatever is an ordinary number stays one, and what is coded once stays: also where the smallest code, or one over the
    scale, would be below the ordinary numbers, which a processor may take for 0."""
    x = jnp.asarray(np.maximum(largest * np.linspace(0.01, 1, 256) ** 4, 1.18e-38), jnp.float32)[None]
    once = encode(x, thresholds(x.shape, 1, 0))
    back = np.asarray(decode(once), np.float64)
    assert (back >= 2.0**-126).all()
    assert (np.abs(back[0, -100:] / x[0, -100:] - 1) < (0.1 if largest > 1e-29 else 16)).all()
    for step in range(5):
        assert bits_of(encode(decode(once), thresholds(x.shape, step, 5))) == bits_of(once)


@pytest.mark.parametrize("store", ["bfloat16", "codes", "remainder"])
def test_the_mean_over_many_steps_is_right(store):
    x = numbers((8, 128), decades=1)

    def once(step):
        theta = thresholds(x.shape, step, 3)
        if store == "bfloat16":
            return to_bfloat16(x, theta).astype(jnp.float32)
        return decode(encode(x, theta)) if store == "codes" else join(*split(x, 8, theta))

    mean = np.asarray(jax.vmap(once)(jnp.arange(4096)), np.float64).mean(axis=0)
    units = {"bfloat16": 2.0**-7, "remainder": 2.0**-15}
    unit = units[store] * np.abs(x) if store in units else None
    if unit is None:  # the distance between codes
        root = 127 * (np.abs(x) / np.abs(x).max()) ** 0.25
        unit = ((np.floor(root) + 1) ** 4 - np.floor(root) ** 4) / 127**4 * np.abs(x).max()
        above = root >= 1  # below the first code everything is the first code
    else:
        above = np.ones(x.shape, bool)
    assert (np.abs(mean - x)[above] < 2e-3 * np.asarray(unit)[above]).all()


def test_a_block_with_a_nan_does_not_touch_the_others():
    x = jnp.ones((16, 512)).at[0, 0].set(jnp.nan)
    back = np.asarray(decode(encode(x, thresholds(x.shape, 0, 0))))
    assert np.isnan(back[0, :256]).all()
    assert (back[1:] == 1).all()
    assert (back[:, 256:] == 1).all()


@pytest.mark.parametrize("shape", [(64, 512), (3, 40, 96), (1000,), (7, 130), (4, 3)], ids=str)
def test_the_largest_is_found_alike_on_every_platform(shape):
    x = jnp.abs(numbers(shape))
    np.testing.assert_array_equal(_largest_in_steps(x), largest(x))
    np.testing.assert_array_equal(_largest_in_tiles(x), largest(x))


def test_the_upper_half_is_the_same_on_every_platform():
    """For all bfloat16; a NaN may become another one."""
    bits = jnp.arange(2**16, dtype=jnp.uint32) << 16
    one, other = (np.asarray(way(bits).astype(jnp.float32)) for way in (_upper_half_by_uint16, _upper_half))
    np.testing.assert_array_equal(one, other)
    exact = np.asarray(jax.lax.bitcast_convert_type(bits, jnp.float32))
    np.testing.assert_array_equal(one.view(np.uint32)[~np.isnan(exact)], exact.view(np.uint32)[~np.isnan(exact)])
