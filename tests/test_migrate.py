"""A run that goes on with other names, shapes, rules, groups and wrappers: what is kept is kept to the bit, and nothing is lost
in silence. It is compared with a run that had the new names, or the new rule, from its start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import scaled
from zoo import OPTIMIZERS, bits, groups, make_params, specs

from mithril_opt import (
    EMA,
    LAMB,
    SGD,
    SOAP,
    Accumulate,
    Adafactor,
    Adam,
    Adamax,
    AdamW,
    Clip,
    Frozen,
    LinearWarmupScheduler,
    Lion,
    Lookahead,
    MixedPrecisionTrainer,
    MultiOptimizer,
    Muon,
    NAdam,
    Prodigy,
    Quantize,
    Record,
    ReduceLROnPlateau,
    RMSProp,
    Round,
    Switch,
    from_optax,
    migrate,
    state_shardings,
    to_state_dict,
)
from mithril_opt.interop.state_format import RULES_KEY, VERSION_KEY

PARAMS = make_params()
PATHS = ["body/b/0", "body/b/1", "body/w", "embed"]
OLD_TO_NEW = {"embed": "tokens/embed", "body/*": "core/*"}


def train(optimizer, params, state, seeds, among=lambda tree: tree):
    for seed in seeds:
        params, state = optimizer.update(params, among(make_params(seed=seed)), state)
    return params, state


def start(optimizer, params=PARAMS, steps=3, among=lambda tree: tree):
    return train(optimizer, among(params), optimizer.init(among(params)), range(1, 1 + steps), among)


def names(state):
    return [name for name in to_state_dict(state) if name not in (VERSION_KEY, RULES_KEY)]


def check_report(report, old_state, new_state):
    """Every array of both states is in the report, in one place."""
    sources = [*report.kept.values(), *report.resized.values()]
    assert sorted([*report.kept, *report.resized, *report.fresh]) == sorted(names(new_state))
    reset = {name for name in report.fresh if name.endswith("bad_leaf")}  # a position among other leaves
    assert sorted({*sources, *report.dropped, *reset} & {*names(old_state)}) == sorted(names(old_state))
    assert not set(sources) & set(report.dropped)
    assert all([*report.fresh.values(), *report.dropped.values()])


def moved(state, optimizer, params, new_optimizer, new_params=None, rename=None):
    """`migrate`, with what must always be so."""
    new_params, before = params if new_params is None else new_params, bits(state)
    new, report = migrate(state, optimizer, params, new_optimizer, new_params, rename)
    assert bits(state) == before
    assert specs(new) == specs(new_optimizer.init(new_params))
    check_report(report, state, new)
    old_leaves, new_leaves = dict(zip(names(state), jax.tree.leaves(state), strict=True)), jax.tree.leaves(new)
    for name, leaf in zip(names(new), new_leaves, strict=True):
        if name in report.kept:
            assert bits(leaf) == bits(old_leaves[report.kept[name]]), name
    mine = {leaf.unsafe_buffer_pointer() for leaf in new_leaves if leaf.nbytes}
    assert not mine & {
        leaf.unsafe_buffer_pointer() for leaf in (*old_leaves.values(), *jax.tree.leaves(new_params)) if leaf.nbytes
    }
    return new, report


def with_core(tree):
    """The decay masks of the table know "embed" by its name."""
    return {"embed": tree["embed"], "core": tree["body"]}


def renamed(tree):
    return {"tokens": {"embed": tree["embed"]}, "core": tree["body"]}


# The same again, and other names.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_to_itself_all_is_kept(name):
    optimizer = OPTIMIZERS[name]()
    params, state = start(optimizer, steps=2)
    new, report = moved(state, optimizer, params, optimizer)
    assert bits(new) == bits(state)
    assert report.kept == {name: name for name in names(state)}
    assert [*report.resized, *report.fresh, *report.dropped, *report.notes] == []


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "noise"])  # which is drawn by the path
def test_under_other_names_the_run_is_the_one_that_always_had_them(name):
    optimizer = OPTIMIZERS[name]()
    params, state = start(optimizer, steps=2)
    new, report = moved(state, optimizer, params, optimizer, with_core(params), {"body/*": "core/*"})
    assert [*report.resized, *report.fresh, *report.dropped] == []
    expected = start(optimizer, steps=2, among=with_core)
    assert bits(new) == bits(expected[1])
    assert bits(train(optimizer, with_core(params), new, [9], with_core)) == bits(train(optimizer, *expected, [9], with_core))


def test_a_function_may_rename():
    optimizer = Adam()
    params, state = start(optimizer)
    by_function, _ = moved(
        state,
        optimizer,
        params,
        optimizer,
        renamed(params),
        lambda path: path.replace("body/", "core/", 1).replace("embed", "tokens/embed"),
    )
    assert bits(by_function) == bits(moved(state, optimizer, params, optimizer, renamed(params), OLD_TO_NEW)[0])


def test_two_names_may_be_exchanged():
    params = {"a": jnp.ones(2), "b": jnp.zeros(2)}
    _, state = Adam().update(params, {"a": jnp.ones(2), "b": jnp.full(2, 2.0)}, Adam().init(params))
    new, _ = moved(state, Adam(), params, Adam(), rename={"a": "b", "b": "a"})
    assert bits(new.slots.mu) == bits({"a": state.slots.mu["b"], "b": state.slots.mu["a"]})


def test_stars_keep_their_order():
    old = {"enc": {"0": {"w": jnp.ones(1)}, "1": {"w": jnp.ones(1), "b": jnp.ones(1)}}}
    new = {"1": {"of": {"b": jnp.ones(1), "w": jnp.ones(1)}}, "w": {"0": jnp.ones(1)}}
    sgd = SGD(momentum=0.5)
    _, report = moved(sgd.init(old), sgd, old, sgd, new, {"enc/0/*": "*/0", "enc/*/*": "*/of/*"})
    assert [*report.fresh, *report.dropped] == []
    assert report.kept["slots/trace/1/of/w"] == "slots/trace/enc/1/w"
    assert report.kept["slots/trace/w/0"] == "slots/trace/enc/0/w"


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        ({"head": "tail"}, ValueError, "'head' fits none of the old paths, body/b/0, body/b/1, body/w, embed"),
        ({"e.bed": "tail"}, ValueError, "'e.bed' fits none of the old paths"),
        ({"body/*": "body"}, ValueError, r"rename: 'body/\*' and 'body' must have as many stars"),
        ({"embed": "body/w"}, ValueError, "rename turns body/w, embed into 'body/w'"),
        (lambda path: "x", ValueError, "rename turns body/b/0, body/b/1, body/w, embed into 'x'"),
        (lambda path: None, TypeError, "rename must turn 'body/b/0' into a path, got None"),
        ({"embed": 3}, TypeError, "rename must hold paths, got 'embed': 3"),
        ("embed", TypeError, "rename must be a function or a dictionary of paths, got 'embed'"),
    ],
)
def test_bad_names(rename, error, message):
    with pytest.raises(error, match=message):
        migrate(Adam().init(PARAMS), Adam(), PARAMS, Adam(), PARAMS, rename)


# Other parameters.


def test_a_layer_is_added_and_another_removed():
    optimizer = Adam()
    params, state = start(optimizer)
    changed = {**params, "head": jnp.ones(3), "body": {"w": params["body"]["w"]}}
    new, report = moved(state, optimizer, params, optimizer, changed)
    for slot in ("mu", "nu"):
        ours, theirs = getattr(new.slots, slot), getattr(state.slots, slot)
        assert bits((ours["embed"], ours["body"]["w"])) == bits((theirs["embed"], theirs["body"]["w"]))
        assert not ours["head"].any()
        assert report.fresh[f"slots/{slot}/head"] == "a new parameter"
        assert report.dropped[f"slots/{slot}/body/b/0"] == "no such parameter"
    assert int(new.step) == 3
    assert report.notes == ("note: fresh moments on a clock at 3, which makes the first steps too large: head",)


def test_a_path_that_is_renamed_to_nothing():
    _, report = moved(Adam().init(PARAMS), Adam(), PARAMS, Adam(), rename={"embed": "tokens"})
    assert report.dropped["slots/mu/embed"] == "no such parameter: tokens"
    assert report.fresh["slots/mu/embed"] == "a new parameter"


ELEMENTWISE = [
    name
    for name in ("sgd-momentum", "adam", "adamw-amsgrad", "rmsprop-centered", "adagrad", "lion", "nadam", "adan")
    if name in OPTIMIZERS
]


@pytest.mark.parametrize("rows", [6, 3])
@pytest.mark.parametrize("name", [*ELEMENTWISE, "ema", "lookahead", "accumulate", "multi"])
def test_the_rows_of_a_resized_embedding_go_on(name, rows):
    """As in a run that was never resized, and the new ones start as `init` makes them."""
    optimizer = OPTIMIZERS[name]()
    params, state = start(optimizer)
    fill = np.random.default_rng(5).normal(size=(8, 3)).astype(np.float32)

    def resized(tree):
        return {**tree, "embed": jnp.concatenate([tree["embed"], fill])[:rows]}

    new, report = moved(state, optimizer, params, optimizer, resized(params))
    assert len(report.resized) == sum(
        name.endswith("embed") for name in names(state) if "product" not in name and "started" not in name
    )
    assert not report.dropped
    assert not report.fresh
    old_end = train(optimizer, params, state, [7, 8])
    new_end = train(optimizer, resized(params), new, [7, 8], resized)
    kept = min(rows, 4)
    for old, new in zip(jax.tree.leaves(old_end), jax.tree.leaves(new_end), strict=True):
        old, new = (leaf[:kept] if jnp.shape(leaf)[:1] in ((4,), (rows,)) else leaf for leaf in (old, new))
        np.testing.assert_allclose(old, new, rtol=1e-6, atol=1e-7)


def test_new_rows_of_an_average_are_those_of_the_parameters():
    optimizer = EMA(SGD())
    params, state = start(optimizer)
    wider = {**params, "embed": jnp.concatenate([params["embed"], jnp.full((2, 3), 7.0)])}
    new, _ = moved(state, optimizer, params, optimizer, wider)
    np.testing.assert_array_equal(new.average["embed"][4:], 7.0)
    assert bits(new.average["embed"][:4]) == bits(state.average["embed"])


def test_new_rows_are_too_fast_as_well():
    params, state = start(Adam())
    _, report = moved(state, Adam(), params, Adam(), {**params, "embed": jnp.ones((6, 3))})
    assert report.notes == ("note: fresh moments on a clock at 3, which makes the first steps too large: embed",)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 1), (5, 2), ()])
def test_a_parameter_of_another_form_starts_afresh(shape):
    optimizer = Adam()
    params, state = start(optimizer)
    new, report = moved(state, optimizer, params, optimizer, {**params, "embed": jnp.ones(shape)})
    dims = ",".join(map(str, shape))
    assert report.fresh["slots/nu/embed"] == f"the parameter was float32[4,3], and is float32[{dims}]"
    assert report.dropped["slots/nu/embed"] == report.fresh["slots/nu/embed"]
    assert not new.slots.nu["embed"].any()


def test_bases_are_not_cut():
    """A part of an orthogonal matrix is none, and a second moment in another basis is nobody's."""
    optimizer = SOAP(max_precond_dim=8)
    params, state = start(optimizer)
    _, report = moved(state, optimizer, params, optimizer, {**params, "embed": jnp.ones((6, 3))})
    assert {name for name in report.fresh if "embed" in name} == {name for name in names(state) if "embed" in name}
    assert not report.resized


def test_rows_and_columns_of_a_factored_moment():
    optimizer = Adafactor(min_dim_size_to_factor=2)
    params, state = start(optimizer)
    new, report = moved(state, optimizer, params, optimizer, {**params, "embed": jnp.ones((6, 3))})
    (resized,) = report.resized
    assert (
        new.slots.row["embed"].shape != state.slots.row["embed"].shape
        or new.slots.col["embed"].shape != state.slots.col["embed"].shape
    )
    assert resized.endswith("embed")


def test_a_parameter_may_change_its_dtype():
    params, state = start(Adam())
    new, report = moved(state, Adam(), params, Adam(), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    assert bits(new) == bits(state)
    _, report = moved(state, Adam(), params, Adam(), jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), params))
    assert report.fresh["slots/mu/embed"] == "it was float32[4,3], and is complex64[4,3]"
    assert report.kept["slots/nu/embed"] == "slots/nu/embed"
    _, report = moved(state, Adam(), params, Adam(), {**params, "embed": jnp.ones((6, 3), jnp.complex64)})
    assert report.fresh["slots/mu/embed"] == "the parameter was float32[4,3], and is complex64[6,3]"
    assert report.resized == {"slots/nu/embed": "slots/nu/embed"}


def test_a_tree_that_is_one_array():
    """Its path is empty, and it has no more structure than a counter."""
    optimizer = EMA(Adam(), debias=True)
    params, state = start(optimizer, among=lambda tree: tree["embed"])
    new, report = moved(state, optimizer, params, optimizer, {"w": params}, lambda path: "w")
    assert [*report.fresh, *report.resized, *report.dropped] == []
    assert bits(new) == bits(state)
    wider, report = moved(state, optimizer, params, optimizer, jnp.ones((6, 3)))
    assert {*report.resized} == {"optimizer/slots/mu", "optimizer/slots/nu", "average"}
    assert int(wider.updates) == 3


def test_a_tree_without_parameters_keeps_its_counters():
    trainer = MixedPrecisionTrainer(None, EMA(groups(Adam(), SGD()), debias=True))
    state = trainer.init({})
    _, state, _ = trainer.update({}, {}, state)
    new, _ = moved(state, trainer, {}, trainer)
    assert bits(new) == bits(state)
    assert int(new.loss_scale.attempts) == 1


def test_what_does_not_train_is_no_parameter():
    old = {
        "w": jnp.ones(2),
        "x": 1.5,
        "n": jnp.arange(3),
        "name": "text",
        "act": jnp.tanh,
        "key": jax.random.key(0),
        "none": None,
    }
    new = {"w": jnp.ones(2), "x": 1.5, "n": jnp.ones(3), "name": "other"}
    state = Adam().init(old)
    migrated, report = migrate(state, Adam(), old, EMA(Adam()), new)
    check_report(report, state, migrated)
    assert report.fresh["optimizer/slots/mu/n"] == "a new parameter"
    assert not report.dropped
    _, planned = migrate(jax.eval_shape(lambda: state), Adam(), old, EMA(Adam()), new)
    assert planned.kept == report.kept


def test_the_parameters_of_nnx():
    class Model(nnx.Module):
        def __init__(self, rows):
            self.embed, self.out = nnx.Embed(rows, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(1))

    old, new = (nnx.state(Model(rows), nnx.Param) for rows in (4, 6))
    state = Adam().update(old, old, Adam().init(old))[1]
    migrated, report = moved(state, Adam(), old, EMA(AdamW()), new)
    assert set(report.resized) == {"optimizer/slots/mu/embed/embedding", "optimizer/slots/nu/embed/embedding"}
    assert report.kept["optimizer/slots/mu/out/kernel"] == "slots/mu/out/kernel"
    AdamW().update(new, new, migrated.optimizer)


def test_names_that_are_in_a_state_anyway():
    """A path of optax's own that reads like a parameter."""
    optimizer, params = from_optax(optax.adam(0.1)), [jnp.ones(2), jnp.zeros(2)]
    _, state = optimizer.update(params, [jnp.ones(2), jnp.full(2, 2.0)], optimizer.init(params))
    new, report = moved(state, optimizer, params, optimizer, {"a": params[0], "b": params[1]}, {"0": "a", "1": "b"})
    assert [*report.fresh, *report.resized, *report.dropped] == []
    assert bits(new) == bits(state)


# Another rule.


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.0}], ids=["decay", "no decay"])
def test_adam_goes_on_as_adamw(settings):
    """Without a decay they are the same rule."""
    old, new = Adam(learning_rate=0.1), AdamW(learning_rate=0.1, **settings)
    params, state = start(old)
    migrated, report = moved(state, old, params, new)
    assert bits(migrated) == bits(state)
    assert [*report.fresh, *report.dropped, *report.notes] == []
    same = bits(train(new, params, migrated, [7, 8])) == bits(train(old, params, state, [7, 8]))
    assert same == bool(settings)


@pytest.mark.parametrize(
    ("old", "new", "kept", "fresh", "dropped"),
    [
        (Adam(), AdamW(amsgrad=True), {"mu", "nu"}, {"nu_max"}, set()),
        (AdamW(amsgrad=True), Adam(), {"mu", "nu"}, set(), {"nu_max"}),
        (Adam(), LAMB(), {"mu", "nu"}, set(), set()),
        (AdamW(), Lion(), {"mu"}, set(), {"nu"}),
        (AdamW(), Muon(matrix_axes=lambda path, leaf: ((), ())), {"mu"}, set(), {"nu"}),
        (Lion(), Adamax(), {"mu"}, {"u"}, set()),
        (RMSProp(centered=True), Adam(), {"nu"}, {"mu"}, {"mu"}),  # which averages as slowly as nu
        (NAdam(), Adam(), {"nu"}, {"mu"}, {"mu", "product"}),
        (Adam(), NAdam(), {"nu"}, {"mu", "product"}, {"mu"}),  # corrected by the product, which starts afresh
        (Adam(), SOAP(), set(), None, {"mu", "nu"}),
        (Adam(), Prodigy(), set(), {"mu", "nu", "s", "displacement"}, {"mu", "nu"}),
        (SGD(momentum=0.9), Muon(matrix_axes=lambda path, leaf: ((), ())), set(), {"mu"}, {"trace"}),  # a sum, not an average
        (SGD(), Adam(), set(), {"mu", "nu"}, set()),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "init") else "",
)
def test_slots_that_mean_the_same(old, new, kept, fresh, dropped):
    params, state = start(old)
    _, report = moved(state, old, params, new)
    slots = lambda names: {name.split("/")[1] for name in names if name.endswith("/embed") or "/embed/" in name}  # noqa: E731
    assert slots(report.kept) == kept
    assert fresh is None or slots(report.fresh) == fresh
    assert slots(report.dropped) == dropped
    assert report.kept["step"] == "step"


def test_from_adam_to_muon_for_matrices_and_adamw_for_the_rest():
    old = Adam(learning_rate=LinearWarmupScheduler(10, 0.0, 0.1))
    new = MultiOptimizer({"muon": Muon(), "adamw": AdamW()}, groups={"muon": "body/w", "adamw": ...})
    params, state = start(old)
    migrated, report = moved(state, old, params, new)
    assert int(migrated.step) == 3
    assert bits(migrated.slots["muon"].mu["body"]["w"]) == bits(state.slots.mu["body"]["w"])
    assert bits(migrated.slots["adamw"].nu["embed"]) == bits(state.slots.nu["embed"])
    assert report.dropped == {"slots/nu/body/w": "the new state has no place for it"}
    assert [*report.fresh, *report.notes] == []
    back, report = moved(migrated, new, params, old)
    assert bits(back._replace(slots=back.slots.mu)) == bits(state._replace(slots=state.slots.mu))
    assert set(report.fresh) == {"slots/nu/body/w"}


def test_a_transformation_of_optax_keeps_its_own():
    old = from_optax(optax.adam(0.1))
    params, state = start(old)
    _, report = moved(state, old, params, from_optax(optax.sgd(0.1, momentum=0.9)))
    assert report.kept == {"step": "step"}
    same, _ = moved(state, old, params, EMA(old))
    assert bits(same.optimizer) == bits(state)


# Other groups.

PLATEAU = ReduceLROnPlateau(0.1, patience=0)


def test_groups_are_parted_and_joined():
    old, new = Adam(learning_rate=PLATEAU), groups(Adam(learning_rate=PLATEAU), AdamW(learning_rate=PLATEAU))
    params, state = start(old)
    state = old.observe(old.observe(state, 1.0), 2.0)
    parted, report = moved(state, old, params, new)
    assert [*report.fresh, *report.dropped] == []
    assert bits(parted.schedules) == 2 * bits(state.schedules)
    assert bits(new.learning_rates(parted)) == 2 * bits(old.get_learning_rate(state))
    joined, report = moved(parted, new, params, old)
    assert bits(joined) == bits(state)


def test_groups_that_differ_start_what_they_share_afresh():
    old, new = groups(Adam(learning_rate=PLATEAU), Adam(learning_rate=PLATEAU)), Adam(learning_rate=PLATEAU)
    params, state = start(old)
    state = old.observe(state, 1.0)
    state.schedules["body"]["learning_rate"] = state.schedules["body"]["learning_rate"]._replace(best=jnp.float32(0.25))
    joined, report = moved(state, old, params, new)
    body, embedding = (f"schedules/{group}/learning_rate" for group in ("body", "embedding"))
    why = f"its parameters come from groups that differ in it: {body}/best, {embedding}/best"
    assert report.fresh == {"schedules/learning_rate/best": why}
    assert (report.dropped[f"{body}/best"], report.dropped[f"{embedding}/best"]) == (why, why)
    assert report.dropped[f"{embedding}/num_bad_epochs"] == f"the same as {body}/num_bad_epochs"
    assert bits(joined.schedules["learning_rate"].best) == bits(new.init(params).schedules["learning_rate"].best)
    assert int(joined.step) == 3


def test_groups_in_groups_are_on_one_clock():
    old, new = Adam(), MultiOptimizer({"w": groups(Adam(), Lion()), "b": Adam()}, groups={"w": ["embed", "*/w"], "b": ...})
    params, state = start(old)
    parted, report = moved(state, old, params, new, {**params, "head": jnp.ones(3)})
    assert int(parted.step) == 3
    assert report.notes == ("note: fresh moments on a clock at 3, which makes the first steps too large: head",)
    same, _ = moved(parted, new, {**params, "head": jnp.ones(3)}, new)
    assert bits(same) == bits(parted)


def test_what_a_rule_keeps_for_the_whole_tree():
    old = Prodigy(d0=0.01)
    params, state = start(old, steps=5)
    new, report = moved(state, old, params, MultiOptimizer({"all": old}, {"all": ...}))
    assert bits(new.shared["all"]) == bits(state.shared)
    assert not report.fresh


# In mid-run, what was frozen trains.


def test_thawing_on_the_clock_of_the_run():
    old, new = groups(Frozen(), SGD(momentum=0.9)), groups(AdamW(), SGD(momentum=0.9))
    params, state = start(old)
    migrated, report = moved(state, old, params, new)
    assert int(migrated.step) == 3
    assert bits(migrated.slots["body"]) == bits(state.slots["body"])
    assert report.fresh == dict.fromkeys(["slots/embedding/mu/embed", "slots/embedding/nu/embed"], "the old state has none")
    assert report.notes == ("note: fresh moments on a clock at 3, which makes the first steps too large: embed",)
    frozen_again, report = moved(migrated, new, params, old)
    assert bits(frozen_again) == bits(state)
    assert set(report.dropped) == {"slots/embedding/mu/embed", "slots/embedding/nu/embed"}


def always(step):
    return True


def test_thawing_on_a_clock_of_its_own():
    """As in training that begins there."""
    old, new = groups(Frozen(), AdamW()), groups(Switch(AdamW(learning_rate=0.1), on=always), AdamW())
    params, state = start(old)
    migrated, report = moved(state, old, params, new)
    assert not report.notes
    assert int(migrated.slots["embedding"].optimizer.step) == 0
    assert int(migrated.step) == 3
    new_params, migrated = train(new, params, migrated, [7])
    alone, _ = AdamW(learning_rate=0.1).update(params["embed"], make_params(seed=7)["embed"], AdamW().init(params["embed"]))
    assert bits(new_params["embed"]) == bits(alone)
    clocks = migrated.slots["embedding"]
    assert (int(clocks.optimizer.step), int(clocks.step), int(migrated.step)) == (1, 4, 4)


def test_a_switch_comes_and_goes_with_the_clock_of_its_moments():
    plain, switched = Adam(), Switch(Adam(), on=lambda step: step % 2 == 0)
    params, state = start(switched, steps=5)
    assert (int(state.step), int(state.optimizer.step)) == (5, 3)
    without, _ = moved(state, switched, params, plain)
    assert int(without.step) == 3
    again, report = moved(without, plain, params, switched)
    assert (int(again.step), int(again.optimizer.step)) == (3, 3)
    assert not report.notes
    old, new = groups(Switch(Adam(), on=always), SGD()), groups(Adam(), SGD())
    params, state = start(old)
    state.slots["embedding"] = state.slots["embedding"]._replace(
        optimizer=state.slots["embedding"].optimizer._replace(step=jnp.int32(1))
    )
    joined, _ = moved(state, old, params, new)
    assert int(joined.step) == 3  # that of the run, where the groups had different ones
    assert bits(joined.slots["embedding"]) == bits(state.slots["embedding"].optimizer.slots)
    same, _ = moved(state, old, params, old)
    assert bits(same) == bits(state)


@pytest.mark.parametrize(("old", "new"), [(Frozen(), SGD()), (SGD(momentum=0.9), Adam()), (Frozen(), Lion())])
def test_a_group_that_starts_afresh_may_have_a_clock_from_0(old, new):
    old, new = groups(old, Adam()), groups(Switch(new, on=always), Adam())
    params, state = start(old)
    migrated, report = moved(state, old, params, new)
    assert int(migrated.slots["embedding"].optimizer.step) == 0
    assert not report.notes


def test_all_groups_have_clocks_of_their_own():
    late = Switch(Adam(), on=lambda step: step >= 2)
    optimizer = groups(late, late)
    params, state = start(optimizer)
    assert (int(state.step), int(state.slots["body"].optimizer.step)) == (3, 1)
    new, _ = moved(state, optimizer, params, optimizer)
    assert bits(new) == bits(state)
    one, _ = moved(state, optimizer, params, late)
    assert (int(one.step), int(one.optimizer.step)) == (3, 1)


@pytest.mark.parametrize(
    ("old", "new", "late"),
    [
        (Adam(), Adam(amsgrad=True), False),
        (NAdam(), Adam(), False),
        (Adam(), NAdam(), False),
        (RMSProp(), Adam(), False),
        (Adam(), Adamax(), False),  # its maximum is not corrected
        (Lion(), Adam(), True),
        (SGD(), Adafactor(min_dim_size_to_factor=2), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_steps_are_too_large_where_they_are_divided_by_what_is_fresh(old, new, late):
    params, state = start(old)
    notes = moved(state, old, params, new)[1].notes
    paths = ", ".join(PATHS)
    assert notes == ((f"note: fresh moments on a clock at 3, which makes the first steps too large: {paths}",) if late else ())


def test_the_note_is_right():
    """On constant gradients Adam steps by its rate; after the move a new parameter takes longer steps, the old ones do not."""
    old = new = Adam(learning_rate=1.0, epsilon=0.0)
    params = {"w": jnp.zeros(1)}
    ones = {"w": jnp.ones(1), "v": jnp.ones(1)}
    state = old.init(params)._replace(
        step=jnp.int32(10_000), slots=type(old.init(params).slots)({"w": jnp.ones(1)}, {"w": jnp.ones(1)}, None)
    )
    migrated, report = moved(state, old, params, new, {"w": jnp.zeros(1), "v": jnp.zeros(1)})
    assert report.notes
    after, _ = new.update({"w": jnp.zeros(1), "v": jnp.zeros(1)}, ones, migrated)
    assert float(after["w"][0]) == pytest.approx(-1.0, rel=1e-4)
    assert float(after["v"][0]) == pytest.approx(-0.1 / 0.001**0.5, rel=1e-3)


def test_only_moments_that_the_clock_corrects_are_too_large():
    for optimizer in (Lion(), RMSProp(), SGD(momentum=0.9)):
        params, state = start(optimizer)
        _, report = moved(state, optimizer, params, optimizer, {**params, "head": jnp.ones(3)})
        assert report.fresh
        assert not report.notes


# Wrapped and unwrapped.

WRAPPED = {
    "clip": lambda inner: Clip(inner, clip_norm=1.0),
    "ema": EMA,
    "ema of ema": lambda inner: EMA(EMA(inner, decay=0.5)),
    "lookahead in clip": lambda inner: Clip(Lookahead(inner), clip_norm=1.0),
    "accumulate": lambda inner: Accumulate(inner, every=2),
    "record": Record,
    "switch": lambda inner: Switch(inner, on=always),
    "trainer": lambda inner: MixedPrecisionTrainer(None, inner),
    "everything": lambda inner: MixedPrecisionTrainer(None, EMA(Record(Accumulate(Clip(inner, clip_norm=1.0), every=3)))),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("inner", [Adam(), groups(EMA(AdamW()), SGD(momentum=0.9))], ids=["adam", "groups"])
def test_wrapped_and_unwrapped(name, inner):
    wrapped = WRAPPED[name](inner)
    params, state = start(inner)
    there, report = moved(state, inner, params, wrapped)
    assert [*report.resized, *report.dropped] == []
    assert {*report.kept.values()} == {*names(state)}
    expected = wrapped.init(params)
    fresh = set(report.fresh) - {"step"}
    leaves = zip(names(there), jax.tree.leaves(there), jax.tree.leaves(expected), strict=True)
    assert all(bits(leaf) == bits(other) for own, leaf, other in leaves if own in fresh)
    back, report = moved(there, wrapped, params, inner)
    assert bits(back) == bits(state)
    assert not report.fresh


def test_each_of_two_wrappers_of_a_kind_keeps_its_own():
    optimizer = EMA(Clip(EMA(SGD(), decay=0.25), clip_norm=1.0), decay=0.75)
    params, state = start(optimizer)
    assert bits(state.average) != bits(state.optimizer.average)
    new, _ = moved(state, optimizer, params, optimizer)
    assert bits(new) == bits(state)


def test_wrappers_in_another_order_keep_their_own():
    old, new = EMA(Lookahead(Adam())), Lookahead(Clip(EMA(AdamW()), clip_norm=1.0))
    params, state = start(old)
    migrated, report = moved(state, old, params, new)
    assert [*report.fresh, *report.dropped] == []
    assert bits(migrated.slow) == bits(state.optimizer.slow)
    assert bits(migrated.optimizer.average) == bits(state.average)


def test_a_wrapper_around_all_and_one_in_each_group():
    old, new = EMA(groups(Adam(), SGD())), groups(EMA(Adam()), EMA(SGD()))
    params, state = start(old)
    parted, report = moved(state, old, params, new)
    assert [*report.fresh, *report.dropped] == []
    assert bits(parted.slots["embedding"].average["embed"]) == bits(state.average["embed"])
    joined, _ = moved(parted, new, params, old)
    assert bits(joined) == bits(state)


def test_the_window_of_accumulation():
    old = Accumulate(Adam(), every=3)
    params, state = start(old, steps=4)
    assert int(state.micro_step) == 1
    with pytest.raises(ValueError, match="micro_step is 1, and the gradients of an open window would be lost"):
        migrate(state, old, params, Adam(), params)
    longer, report = moved(state, old, params, Accumulate(EMA(Adam()), every=5))
    assert (int(longer.micro_step), bits(longer.mean)) == (1, bits(state.mean))
    params, closed = train(old, params, state, [7, 8])
    without, report = moved(closed, old, params, Adam())
    assert bits(without) == bits(closed.optimizer)
    assert report.dropped["mean/embed"] == "the new state has no place for it"
    given_up, _ = moved(state._replace(micro_step=jnp.int32(0)), old, params, Adam())
    assert bits(given_up) == bits(state.optimizer)


def test_windows_that_differ_are_not_joined():
    old = groups(Accumulate(SGD(), every=3), Accumulate(SGD(), every=2))
    params, state = start(old, steps=1)
    state.slots["body"] = state.slots["body"]._replace(micro_step=jnp.int32(0))
    with pytest.raises(ValueError, match="slots/embedding/micro_step is 1, and the gradients of an open window would be lost"):
        migrate(state, old, params, Accumulate(groups(SGD(), SGD()), every=3), params)


# The trainer.


def trainer_run(trainer, steps=3):
    params, state = PARAMS, trainer.init(PARAMS)
    for seed in range(1, 1 + steps):
        grads = jax.tree.map(lambda grad: grad * jnp.where(seed == 2, jnp.inf, 1), make_params(seed=seed))  # noqa: B023
        params, state, _ = trainer.update(params, scaled(trainer, grads, state), state)
    return params, state


def test_the_trainer_keeps_its_scale_and_counters():
    old, new = MixedPrecisionTrainer(None, Adam()), MixedPrecisionTrainer(None, EMA(AdamW()), clip_norm=1.0)
    params, state = trainer_run(old)
    assert float(state.loss_scale.scale) == 2.0**14
    migrated, report = moved(state, old, params, new)
    assert bits(migrated.loss_scale) == bits(state.loss_scale)
    assert bits(migrated.optimizer.optimizer) == bits(state.optimizer)
    wider, report = moved(state, old, params, new, {**params, "a": jnp.ones(1)})
    assert report.fresh["loss_scale/last_bad_leaf"] == "the parameters have other positions"
    assert report.dropped == {}
    assert int(wider.loss_scale.last_bad_leaf) == -1
    assert int(wider.loss_scale.skipped) == 1


def test_arguments_in_another_order():
    params, state = start(Adam(), steps=1)
    with pytest.raises(
        TypeError, match=r"^migrate\(state, optimizer, params, new_optimizer, .*: optimizer must be .* got dict$"
    ):
        migrate(state, params, Adam(), params, Adam())
    with pytest.raises(TypeError, match=r": new_optimizer must be an optimizer or a trainer, got dict$"):
        migrate(state, Adam(), params, params, Adam())


def test_a_scale_where_there_was_none():
    old, new = MixedPrecisionTrainer(None, Adam(), policy="bfloat16"), MixedPrecisionTrainer(None, Adam())
    params, state = trainer_run(old)
    migrated, _ = moved(state, old, params, new)
    assert float(migrated.loss_scale.scale) == 2.0**15
    assert int(migrated.loss_scale.attempts) == 3
    back, _ = moved(migrated, new, params, old)
    assert float(back.loss_scale.scale) == 1.0


# Where it lives.


def test_a_dry_run_takes_shapes():
    old, new = Adam(), EMA(groups(AdamW(), Lion()))
    params, state = start(old)
    changed = {**params, "embed": jnp.ones((6, 3)), "head": jnp.ones(2)}
    _, report = moved(state, old, params, new, changed)
    abstract = lambda tree: jax.eval_shape(lambda: tree)  # noqa: E731
    for own_state, own_params in ((state, abstract(params)), (abstract(state), params), (abstract(state), abstract(params))):
        template, planned = migrate(own_state, old, own_params, new, abstract(changed))
        assert planned[:4] == report[:4]
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(template))
        assert template == jax.eval_shape(new.init, changed)
    concrete, _ = migrate(state, old, abstract(params), new, changed)
    assert not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(concrete))


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def test_arrays_are_put_where_the_new_parameters_are():
    over_8, over_4 = (NamedSharding(mesh_of(count), PartitionSpec("data")) for count in (8, 4))
    params = jax.device_put({"embed": jnp.arange(16.0).reshape(8, 2), "w": jnp.ones((8, 2)), "old": jnp.ones(8)}, over_8)
    old, new = Adam(), EMA(AdamW(learning_rate=0.1))
    params, state = jax.jit(old.update)(
        params, params, jax.jit(old.init, out_shardings=state_shardings(old, params, over_8))(params)
    )
    changed = {"embed": jnp.ones((16, 2)), "w": np.asarray(params["w"]), "new": jnp.ones(8)}
    changed = jax.device_put(changed, over_4)
    migrated, _ = migrate(state, old, params, new, changed)
    for tree in (migrated.optimizer.slots.mu, migrated.optimizer.slots.nu, migrated.average):
        assert {leaf.sharding for leaf in jax.tree.leaves(tree)} == {over_4}
    np.testing.assert_array_equal(migrated.optimizer.slots.mu["embed"][:8], state.slots.mu["embed"])
    assert bits(migrated.optimizer.slots.nu["w"]) == bits(state.slots.nu["w"])
    stepped, after = jax.jit(new.update)(changed, changed, migrated)
    assert stepped["new"].sharding == over_4
    assert int(after.optimizer.step) == 2


def test_a_state_of_numpy_arrays():
    params, state = start(Adam())
    migrated, _ = migrate(jax.device_get(state), Adam(), params, EMA(Adam()), {**params, "embed": jnp.ones((6, 3))})
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(migrated))


# All of it, and at size.

ROWS = sorted(OPTIMIZERS)


@functools.cache
def abstract_state(name):
    return jax.eval_shape(OPTIMIZERS[name]().init, PARAMS)


@pytest.mark.parametrize("name", ROWS)
def test_nothing_is_lost_between_any_two_optimizers(name):
    """Whatever they are: each array of either has one fate, and what goes on fits."""
    position = ROWS.index(name)
    for step in (1, 5, 23, 41):
        other = ROWS[(position + step) % len(ROWS)]
        new, report = migrate(
            abstract_state(name), OPTIMIZERS[name](), PARAMS, OPTIMIZERS[other](), {**PARAMS, "embed": jnp.ones((6, 3))}
        )
        check_report(report, abstract_state(name), new)
        assert {"step", "optimizer/step", "optimizer/optimizer/step"} & set(report.kept)


@pytest.mark.parametrize(
    "pair",
    [("prodigy", "multi-wrappers"), ("soap", "adamw-flags"), ("multi-wrappers", "schedule-free"), ("accumulate", "muon")],
)
def test_training_goes_on(pair):
    old, new = (OPTIMIZERS[name]() for name in pair)
    params, state = start(old)
    migrated, _ = moved(state, old, params, new)
    params, migrated = train(new, params, migrated, [7, 8])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def test_a_report_of_many_parameters_is_short():
    params = {f"layer{i}": {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)} for i in range(1000)}
    other = {**params, "head": jax.ShapeDtypeStruct((2,), jnp.float32)}
    state = jax.eval_shape(Adam().init, params)
    _, report = migrate(state, Adam(), params, EMA(AdamW()), other)
    assert len(report.kept) == 2001
    assert len(str(report).splitlines()) == 4
    assert len(str(report)) < 2000
    assert "layer0/w" in str(report)


# Storage.


BOTH = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
WAYS = {
    "8 bits": lambda: Quantize(Adam(), bits=8),
    "16 bits": lambda: Clip(Quantize(Adam()), clip_norm=1.0),
    "rounded": lambda: Round(Quantize(Adam(), bits=8)),
    "in groups": lambda: MultiOptimizer({"w": Quantize(Adam(), bits=8), "b": Adam()}, {"w": "w", "b": "b"}),
    "trainer": lambda: MixedPrecisionTrainer(None, Quantize(Adam(), bits=8)),
}


def trained_a_while(optimizer):
    params, state = BOTH, optimizer.init(BOTH)
    for i in range(3):
        grads = jax.tree.map(lambda leaf, i=i: jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype), BOTH)
        params, state, *_ = optimizer.update(params, grads, state)
    return params, state


@pytest.mark.parametrize("way", WAYS)
def test_the_same_storage_keeps_every_bit(way):
    optimizer = WAYS[way]()
    params, state = trained_a_while(optimizer)
    migrated, report = migrate(state, optimizer, params, optimizer, params)
    assert bits(migrated) == bits(state)
    assert specs(migrated) == specs(state)
    assert not report.fresh
    assert not report.dropped
    abstract, _ = migrate(jax.eval_shape(lambda: state), optimizer, params, optimizer, params)
    assert specs(abstract) == specs(state)


def test_another_storage():
    """Codes become float32 and float32 becomes codes; nothing is compared but what each can hold."""
    params, state = trained_a_while(Adam())
    eight = Quantize(Adam(), bits=8)
    stored, report = migrate(state, Adam(), params, eight, params)
    assert bits(stored) == bits(eight.pack(state))
    assert {*report.kept} == {"step", "slots/mu/b", "slots/mu/w", "slots/nu/b", "slots/nu/w"}
    back, _ = migrate(stored, eight, params, Adam(), params)
    assert bits(back) == bits(eight.unpack(stored))
    # A leaf that shrinks: what is kept is what was there, although its blocks are others.
    smaller = {**params, "w": params["w"][:, :96]}
    shrunk, _ = migrate(stored, eight, params, eight, smaller)
    np.testing.assert_allclose(eight.unpack(shrunk).slots.mu["w"], back.slots.mu["w"][:, :96], atol=0.02)


# Bad input.


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Adam().init({**PARAMS, "embed": jnp.ones((6, 3))}), r"slots/mu/embed should be float32\[4,3\], but is float32\[6,3\]"),
        (Adam(amsgrad=True).init(PARAMS), r"slots/nu_max/body/b/0 should be absent, but is float32\[3\]"),
        (Adam().init({"w": jnp.ones(2)}), r"slots/mu/body/b/0 should be float32\[3\], but is absent"),
        (MixedPrecisionTrainer(None, Adam()).init(PARAMS), "of a trainer's state it is the field `optimizer`"),
        (None, "takes the state that init returned, got NoneType"),
    ],
    ids=["shape", "setting", "parameters", "trainer", "none"],
)
def test_a_state_that_is_not_of_the_optimizer(state, message):
    with pytest.raises(ValueError, match=message):
        migrate(state, Adam(), PARAMS, AdamW(), PARAMS)


def test_the_state_of_an_optimizer_for_its_trainer():
    with pytest.raises(ValueError, match="state must be what the trainer's init returned, got OptState"):
        migrate(Adam().init(PARAMS), MixedPrecisionTrainer(None, Adam()), PARAMS, Adam(), PARAMS)


def test_two_parameters_of_one_path():
    params = {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        migrate(Adam().init(params), Adam(), params, Adam(), params)
