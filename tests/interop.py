"""What the tests of the interop with other libraries share."""

import jax
import numpy as np
import pytest


@pytest.fixture
def promotion():
    """Types and ranks promote as users have it: other libraries' own arithmetic needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    """Every leaf of two trees of as many leaves."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(_numbers(a), _numbers(b), rtol=rtol, atol=atol)


def _numbers(leaf):
    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
