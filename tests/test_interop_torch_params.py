"""PyTorch's parameters, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_checkpoints import NAMES, TURNED, part, state_dict, template

from mithril_opt import params_from_torch, params_to_torch


def test_parameters_that_do_not_fit():
    model, params = part("warmup/model/"), template()
    with pytest.raises(ValueError, match=r"'head.weight' of 'head/w' has shape \(3, 4\), .*; transpose=\['head/w'\] turns it"):
        params_from_torch(params, model, NAMES)
    with pytest.raises(ValueError, match=r"each parameter once, in the order of state_dict: missing: body/b, head/b, head/w$"):
        params_from_torch(params, model, ["embed", "body/w"])
    with pytest.raises(ValueError, match=r"has 6 entries, but names lists 5 paths: .* must be a dictionary"):
        params_from_torch(params, {**model, "buffer": np.ones(2)}, [*NAMES.values()], TURNED)
    with pytest.raises(ValueError, match=r"state_dict has no embed.weight, .*; it has module.embed.weight, "):
        params_from_torch(params, {f"module.{name}": value for name, value in model.items()}, NAMES, TURNED)
    with pytest.raises(ValueError, match="state_dict must be that of a model, got an optimizer's"):
        params_from_torch(params, state_dict("warmup"), NAMES, TURNED)
    with pytest.raises(ValueError, match=r"'embed.weight' of 'embed' is complex128, but 'embed' is float32"):
        params_from_torch(params, {**model, "embed.weight": model["embed.weight"] + 0j + np.zeros(4)}, NAMES, TURNED)
    with pytest.raises(ValueError, match=r"PyTorch's 'head.weight' has shape \(3, 4\), but 'head/w' gives float32\[4,3\]"):
        params_to_torch(params, model, NAMES, ["body/w"])
    with pytest.raises(ValueError, match="names must follow the order of state_dict"):
        params_from_torch(params, model, [*NAMES.values()][::-1], TURNED)
    kernel = {"weight": np.zeros((8, 3, 2, 1))}
    with pytest.raises(ValueError, match=r"transpose=\{'w': \(2, 3, 1, 0\)\} turns it"):
        params_from_torch({"w": jnp.zeros((2, 1, 3, 8))}, kernel, ["w"])


def test_parameters_keep_dtypes_places_and_what_does_not_train():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16, sharding=place), "count": 3, "scale": 1.0}
    model = {"scale": np.float64(0.5), "weight": np.arange(8.0).reshape(2, 4)}
    loaded = params_from_torch(params, model, ["scale", "w"], transpose=["w"])
    assert loaded["count"] == 3
    assert loaded["scale"] == 0.5
    assert loaded["w"].sharding == place
    assert loaded["w"].dtype == jnp.bfloat16
    given = params_to_torch(loaded, model, ["scale", "w"], transpose=["w"])
    assert given["weight"].dtype == np.float32
    assert given["weight"].tolist() == model["weight"].tolist()
