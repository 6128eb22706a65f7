"""States as flat dictionaries: names, versions, what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zoo import OPTIMIZERS, bits, make_params, specs

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    MixedPrecisionTrainer,
    MultiOptimizer,
    ReduceLROnPlateau,
    RMSProp,
    from_state_dict,
    to_state_dict,
)

PARAMS = {"decoder": {"w": jnp.ones((2, 3)), "layers": [jnp.zeros(2)]}, "n": jnp.arange(2)}


def test_names_are_stable_and_readable():
    trainer = MixedPrecisionTrainer(None, Accumulate(AdamW(learning_rate=ReduceLROnPlateau(0.1)), every=2))
    assert list(to_state_dict(trainer.init(PARAMS))) == [
        "optimizer/optimizer/step",
        "optimizer/optimizer/slots/mu/decoder/layers/0",
        "optimizer/optimizer/slots/mu/decoder/w",
        "optimizer/optimizer/slots/nu/decoder/layers/0",
        "optimizer/optimizer/slots/nu/decoder/w",
        "optimizer/optimizer/schedules/learning_rate/best",
        "optimizer/optimizer/schedules/learning_rate/num_bad_epochs",
        "optimizer/optimizer/schedules/learning_rate/cooldown_counter",
        "optimizer/optimizer/schedules/learning_rate/num_reductions",
        "optimizer/mean/decoder/layers/0",
        "optimizer/mean/decoder/w",
        "optimizer/micro_step",
        "optimizer/verdict",
        "loss_scale/scale",
        "loss_scale/good_steps",
        "loss_scale/hysteresis",
        "loss_scale/consecutive_skips",
        "loss_scale/skipped",
        "loss_scale/bad_input",
        "loss_scale/attempts",
        "loss_scale/last_bad_leaf",
        "loss_scale/grad_norm",
        "format_version",
        "format_rules",
    ]
    multi = MultiOptimizer({"body": Adam(), "head": SGD(momentum=0.9)}, groups={"body": "decoder/w", "head": ...})
    names = [
        "step",
        "slots/body/mu/decoder/w",
        "slots/body/nu/decoder/w",
        "slots/head/trace/decoder/layers/0",
        "format_version",
        "format_rules",
    ]
    assert list(to_state_dict(multi.init(PARAMS))) == names


def test_the_arrays_are_handed_over_as_they_are():
    state = Adam().init(PARAMS)
    saved = to_state_dict(state)
    assert saved["slots/mu/decoder/w"] is state.slots.mu["decoder"]["w"]
    assert (saved["format_version"], saved["format_version"].dtype) == (3, np.int32)
    assert bytes(saved["format_rules"]) == b"slots: AdamSlots(mu, nu)"


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("abstract", [False, True], ids=["concrete", "abstract"])
def test_round_trip_of_every_optimizer(name, abstract):
    optimizer, params = OPTIMIZERS[name](), make_params()
    _, state = optimizer.update(params, make_params(seed=1), optimizer.init(params))
    template = jax.eval_shape(optimizer.init, params) if abstract else optimizer.init(params)
    on_disk = {key: np.asarray(value) for key, value in to_state_dict(state).items()}
    restored = from_state_dict(template, on_disk)
    assert bits(restored) == bits(state)
    assert specs(restored) == specs(state)


def as_folders(entries):
    """`entries` in nested dictionaries, as a store of folders (HDF5, zarr) has them, where a folder is no array."""
    root = {}
    for path, value in entries.items():
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            folder = folder.setdefault(parent, {})
            assert isinstance(folder, dict), f"{path} goes through an array"
        assert name not in folder, f"{path} is a folder, or there twice"
        folder[name] = value
    return root


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_store_of_folders_can_hold_every_state(name):
    params = make_params()
    trainer = MixedPrecisionTrainer(None, OPTIMIZERS[name]())
    for make in (trainer.init, trainer.optimizer.init):
        saved = to_state_dict({"params": params, "state": jax.eval_shape(make, params)})
        assert len(jax.tree.leaves(as_folders(saved))) == len(saved)
        assert not any("" in path.split("/") for path in saved)


def test_a_file_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")  # comes with Keras
    optimizer, params = OPTIMIZERS["multi-wrappers"](), make_params()
    state = optimizer.init(params)
    with h5py.File(tmp_path / "state.h5", "w") as file:
        for path, value in to_state_dict(state).items():
            file[path] = np.asarray(value)
    with h5py.File(tmp_path / "state.h5") as file:
        names = []
        file.visititems(lambda path, node: names.append(path) if isinstance(node, h5py.Dataset) else None)
        assert bits(from_state_dict(state, {path: file[path][()] for path in names})) == bits(state)


def test_trees_of_parameters_numbers_and_keys():
    tree = {"w": jnp.ones(2, jnp.bfloat16), "x": 1.5, "flag": True, "key": jax.random.key(7), "n": jnp.arange(2)}
    saved = to_state_dict(tree)
    assert all(isinstance(value, np.ndarray | jax.Array) for value in saved.values())
    for template in (tree, jax.eval_shape(lambda: tree)):
        restored = from_state_dict(template, {name: np.asarray(value) for name, value in saved.items()})
        assert bits({**restored, "key": 0}) == bits({**jax.tree.map(jnp.asarray, tree), "key": 0})
        assert jnp.all(restored["key"] == tree["key"])


def test_restored_state_is_free_to_be_used_with_parameters_on_a_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put({"w": jnp.arange(16.0)}, sharding)
    state = AdamW().init(params)
    assert not state.step.committed
    restored = from_state_dict(state, {name: np.asarray(value) for name, value in to_state_dict(state).items()})
    assert restored.slots.mu["w"].sharding == sharding
    new, _ = jax.jit(AdamW().update)(params, params, restored)
    assert new["w"].sharding == sharding


def test_what_fits_is_kept_when_not_strict():
    bigger = {**PARAMS, "head": jnp.ones(3), "decoder": {"w": jnp.ones((2, 5)), "layers": [jnp.zeros(2)]}}
    _, state = Adam().update(PARAMS, PARAMS, Adam().init(PARAMS))
    saved = to_state_dict(state._replace(slots=jax.tree.map(lambda slot: slot + 1, state.slots)))
    fresh = Adam().init(bigger)
    restored = from_state_dict(fresh, {**saved, "more": np.ones(1)}, strict=False)
    assert int(restored.step) == 1
    assert bits(restored.slots.mu["decoder"]["layers"]) == bits(saved["slots/mu/decoder/layers/0"])
    assert bits(restored.slots.mu["decoder"]["w"]) == bits(fresh.slots.mu["decoder"]["w"])
    assert bits(restored.slots.nu["head"]) == bits(fresh.slots.nu["head"])


# Bad input.


def test_strict_lists_all_that_does_not_fit_and_changes_nothing():
    template = Adam().init(PARAMS)
    before = bits(template)
    saved = to_state_dict(template)
    saved["slots/mu/decoder/w"] = np.ones((3, 2), np.float32)
    saved["slots/nu/decoder/w"] = np.ones((2, 3), np.float16)
    saved["slots/nu/encoder/w"] = saved.pop("slots/mu/decoder/layers/0")
    with pytest.raises(ValueError, match="the saved state does not fit") as error:
        from_state_dict(template, saved)
    assert str(error.value).splitlines()[1:] == [
        "  missing: slots/mu/decoder/layers/0 float32[2]",
        "  unexpected: slots/nu/encoder/w",
        "  expected float32[2,3] but found float32[3,2]: slots/mu/decoder/w",
        "  expected float32[2,3] but found float16[2,3]: slots/nu/decoder/w",
    ]
    assert bits(template) == before
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(template))


def test_the_checkpoint_of_another_optimizer():
    saved = to_state_dict(SGD(momentum=0.9).init(PARAMS))
    with pytest.raises(ValueError, match=r"it has 'slots: SGDSlots\(trace\)', expected 'slots: AdamSlots\(mu, nu\)'"):
        from_state_dict(Adam().init(PARAMS), saved)
    del saved["format_rules"]  # as in the first format
    with pytest.raises(
        ValueError, match=r"missing: slots/mu/decoder/w float32\[2,3\]\n(.*\n)+  unexpected: slots/trace/decoder/w"
    ):
        from_state_dict(Adam().init(PARAMS), saved)


def test_slots_of_the_same_names_and_shapes_of_another_rule():
    centered, adam = RMSProp(centered=True), Adam()
    for ours, theirs in ((centered, adam), (adam, centered)):
        with pytest.raises(ValueError, match="the saved state is another rule's"):
            from_state_dict(ours.init(PARAMS), to_state_dict(theirs.init(PARAMS)))
    assert from_state_dict(AdamW().init(PARAMS), to_state_dict(adam.init(PARAMS))).slots.mu is not None


def test_the_classes_and_their_switches_are_in_the_file():
    trainer = MixedPrecisionTrainer(None, OPTIMIZERS["multi-wrappers"]())
    assert bytes(to_state_dict({"state": trainer.init(make_params())})["format_rules"]).decode().split("; ") == [
        "state: TrainerState(optimizer, loss_scale)",
        "state/optimizer/slots/body: LookaheadState(optimizer, slow)",
        "state/optimizer/slots/body/optimizer/slots: SGDSlots()",
        "state/optimizer/slots/embedding: EMAState(optimizer, average)",
        "state/optimizer/slots/embedding/optimizer: RecordState(optimizer, history, rows)",
        "state/optimizer/slots/embedding/optimizer/optimizer/slots: SGDSlots()",
    ]


def test_the_second_format_has_the_classes_of_the_slots_alone():
    centered = RMSProp(centered=True)
    rules = np.frombuffer(b"slots: RMSPropSlots", np.uint8)
    saved = {**to_state_dict(centered.init(PARAMS)), "format_version": np.int32(2), "format_rules": rules}
    assert from_state_dict(centered.init(PARAMS), saved).slots.mu is not None
    with pytest.raises(ValueError, match=r"it has 'slots: RMSPropSlots', expected 'slots: AdamSlots\(mu, nu\)'"):
        from_state_dict(Adam().init(PARAMS), saved)


@pytest.mark.parametrize("step", [-1, -(2**31)])
@pytest.mark.parametrize("strict", [True, False])
def test_a_negative_count(step, strict):
    state = Accumulate(Adam(), every=2).init(PARAMS)
    for name in ("optimizer/step", "micro_step"):
        saved = {**to_state_dict(state), name: np.array(step, np.int32)}
        with pytest.raises(ValueError, match=f"{name} must not be negative, got {step}"):
            from_state_dict(state, saved, strict=strict)


def test_a_path_that_goes_through_a_leaf():
    """No file of folders could hold both."""
    with pytest.raises(ValueError, match=r"the path of a leaf goes on where that of another ends: a/b"):
        to_state_dict({"a": jnp.ones(1), "a/b": jnp.ones(1)})


def test_a_parameter_may_be_called_step():
    params = {"step": jnp.float32(-3.5)}
    assert from_state_dict(params, to_state_dict(params)) == params


def test_a_count_that_int32_does_not_hold():
    saved = {**to_state_dict(SGD().init(PARAMS)), "step": np.array(2**31, np.int64)}
    with pytest.raises(ValueError, match=r"expected int32\[\] but found int64\[\]: step"):
        from_state_dict(SGD().init(PARAMS), saved)


def test_the_arguments_in_the_other_order():
    state = Adam().init(PARAMS)
    with pytest.raises(ValueError, match=r"takes \(template, mapping\), but its first argument is what to_state_dict returned"):
        from_state_dict(to_state_dict(state), state)
    with pytest.raises(TypeError, match="the second argument of from_state_dict is what to_state_dict returned, got OptState"):
        from_state_dict(state, state)


def test_bfloat16_through_a_file_of_numpy(tmp_path):
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, Adam().init(PARAMS))
    np.savez(tmp_path / "state.npz", **to_state_dict(state))
    with np.load(tmp_path / "state.npz") as saved:
        assert bits(from_state_dict(state, dict(saved))) == bits(state)


def test_only_bytes_are_taken_for_what_numpy_does_not_know():
    template = {"w": jnp.ones(2, jnp.bfloat16)}
    saved = {**to_state_dict(template), "w": np.asarray(template["w"]).view("V2")}
    assert bits(from_state_dict(template, saved)) == bits(template)
    for other in (np.zeros(2, [("a", "u1"), ("b", "u1")]), np.zeros(2, "V4"), np.zeros(2, np.float16), np.zeros(2, np.uint16)):
        with pytest.raises(ValueError, match=r"expected bfloat16\[2\] but found"):
            from_state_dict(template, {**saved, "w": other})


def test_values_that_are_no_arrays():
    saved = {**to_state_dict(SGD().init(PARAMS)), "step": "three"}
    with pytest.raises(ValueError, match=r"expected int32\[\] but found str: step"):
        from_state_dict(SGD().init(PARAMS), saved)


def test_an_abstract_template_has_nothing_to_keep():
    template = jax.eval_shape(SGD(momentum=0.9).init, PARAMS)
    with pytest.raises(
        ValueError, match=r"has no values for them:\n  slots/trace/decoder/layers/0 float32\[2\]\n  slots/trace/dec"
    ):
        from_state_dict(template, to_state_dict(SGD().init(PARAMS)), strict=False)


@pytest.mark.parametrize("version", [np.int32(4), np.int32(0), -1])
def test_a_format_of_the_future(version):
    saved = {**to_state_dict(SGD().init(PARAMS)), "format_version": version}
    with pytest.raises(ValueError, match=rf"saved in format {version}; this version of mithril_opt reads up to 3"):
        from_state_dict(SGD().init(PARAMS), saved)


@pytest.mark.parametrize("version", ["1", 1.5, np.ones(2, np.int32)], ids=["string", "float", "array"])
def test_a_format_that_is_no_number(version):
    with pytest.raises(ValueError, match="format_version must be an integer, got"):
        from_state_dict(SGD().init(PARAMS), {**to_state_dict(SGD().init(PARAMS)), "format_version": version})


def test_two_leaves_of_one_name():
    with pytest.raises(ValueError, match="several leaves have the same path: a/b"):
        to_state_dict({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
    with pytest.raises(ValueError, match="several leaves have the same path: format_version"):
        to_state_dict({"format_version": jnp.ones(1)})


def test_leaves_that_cannot_be_saved():
    with pytest.raises(TypeError, match="only arrays can be saved, but 'activation' is function"):
        to_state_dict({"w": jnp.ones(2), "activation": lambda x: x})
