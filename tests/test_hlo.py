"""The reader of compiled programs: small programs counted by hand, and XLA's own count of the bytes."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo

KIB = "f32[256]{0}"  # 1024 bytes

HELPERS = """
%fused (param_0: f32[256], param_1: f32[256]) -> f32[256] {
  %param_0 = f32[256]{0} parameter(0)
  %param_1 = f32[256]{0} parameter(1)
  %twice = f32[256]{0} add(%param_0, %param_0)
  ROOT %sum = f32[256]{0} add(%twice, %param_1)
}

%ones () -> f32[256] {
  %one = f32[] constant(1)
  ROOT %all_one = f32[256]{0} broadcast(%one), dimensions={}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%rows (table: f32[64,256], i: s32[]) -> f32[1,256] {
  %i = s32[] parameter(1)
  %table = f32[64,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,256]{1,0} dynamic-slice(%table, %i, %zero), dynamic_slice_sizes={1,256}
}

%row_and_all (table: f32[64,256], i: s32[]) -> (f32[1,256], f32[64,256]) {
  %table = f32[64,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,256]{1,0} dynamic-slice(%table, %i, %zero), dynamic_slice_sizes={1,256}
  %all = f32[64,256]{1,0} negate(%table)
  ROOT %both = (f32[1,256]{1,0}, f32[64,256]{1,0}) tuple(%row, %all)
}

%in_place (table: f32[64,256], row: f32[1,256], i: s32[]) -> f32[64,256] {
  %table = f32[64,256]{1,0} parameter(0)
  %row = f32[1,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[64,256]{1,0} dynamic-update-slice(%table, %row, %i, %zero)
}

%taken (pair: (f32[256])) -> f32[256] {
  %pair = (f32[256]{0}) parameter(0)
  %inside = f32[256]{0} get-tuple-element(%pair), index=0
  ROOT %minus = f32[256]{0} negate(%inside)
}

%untaken (other: (f32[256])) -> f32[256] {
  %other = (f32[256]{0}) parameter(0)
  ROOT %same = f32[256]{0} get-tuple-element(%other), index=0
}

%more (state: (s32[], f32[256])) -> pred[] {
  %state = (s32[], f32[256]{0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

%turn (was: (s32[], f32[256])) -> (s32[], f32[256]) {
  %was = (s32[], f32[256]{0}) parameter(0)
  %m = s32[] get-tuple-element(%was), index=0
  %x = f32[256]{0} get-tuple-element(%was), index=1
  %y = f32[256]{0} negate(%x)
  ROOT %is = (s32[], f32[256]{0}) tuple(%m, %y)
}
"""
PARAMETERS = """
  %x = f32[256]{0} parameter(0), metadata={op_name="x (y) = z"}
  %y = f32[256]{0} parameter(1)
  %i = s32[] parameter(2)
  %table = f32[64,256]{1,0} parameter(3)
  %ok = pred[] parameter(4)
  %pair = (f32[256]{0}) tuple(%x)
  %state = (s32[], f32[256]{0}) tuple(%i, %x)
"""


def program(*lines):
    """A program of `lines` that may call the helpers."""
    body = "\n".join(f"  {line}" for line in lines)
    first, last = HELPERS[: HELPERS.index("%more")], HELPERS[HELPERS.index("%more") :]
    return hlo.read(f"HloModule test\n{first}\nENTRY %main (x: f32[256]) -> f32[256] {{{PARAMETERS}{body}\n}}\n\n{last}")


# Lines; bytes read and written; of these written; launches.
COSTS = {
    "nothing": (["ROOT %r = (f32[256]{0}) tuple(%x)"], 0, 0, 0),
    "barrier": (["ROOT %r = (f32[256]{0}) opt-barrier(%pair)"], 0, 0, 0),
    "one operation": (["ROOT %r = f32[256]{0} add(%x, %y)"], 3072, 1024, 1),
    "fusion": (["ROOT %r = f32[256]{0} fusion(%x, %y), kind=kLoop, calls=%fused"], 3072, 1024, 1),
    "shapes before names": (["ROOT %r = f32[256]{0} add(f32[256]{0} %x, f32[256]{0} %y)"], 3072, 1024, 1),
    "narrow": (["%b = bf16[256]{0} convert(%x)", "ROOT %r = pred[256]{0} compare(%b, %b), direction=EQ"], 2816, 768, 2),
    "half bytes": (["ROOT %r = s4[256]{0} convert(%x)"], 1152, 128, 1),
    "several results": (
        ["%two = (f32[256]{0}, /*index=1*/f32[256]{0:T(128)}) sort(%x, /*index=1*/%y), dimensions={0}, to_apply=%add"],
        *(4096, 2048, 1),
    ),
    "bitcasts": (["%b = f32[16,16]{1,0} bitcast(%x)", "ROOT %r = f32[16,16]{1,0} negate(%b)"], 2048, 1024, 1),
    "on the chip": (["ROOT %r = f32[256]{0:T(128)S(1)} add(%x, %y)"], 2048, 0, 1),
    "from the chip": (
        ["%c = f32[256]{0:T(128)S(1)} negate(%x)", "ROOT %r = f32[256]{0:T(128)} negate(%c)"],
        *(2048, 1024, 2),
    ),
    "copy to the chip": (
        ["%s = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%x)", "%d = f32[256]{0:S(1)} copy-done(%s)"],
        *(1024, 0, 1),
    ),
    "copy from the chip": (
        ["%s = (f32[256]{0}, f32[256]{0:S(1)}, u32[]{:S(2)}) copy-start(%x)", "%d = f32[256]{0} copy-done(%s)"],
        *(1024, 1024, 1),
    ),
    "slices to the chip": (
        [
            "%s = ((f32[64,256]{1,0}), f32[2,256]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%table), slice={[0:2], [0:256]}",
            "%d = f32[2,256]{1,0:S(1)} slice-done(%s)",
            '%all = f32[2,256]{1,0:S(1)} custom-call(%d), custom_call_target="ConcatBitcast"',
        ],
        *(2048, 0, 1),
    ),
    "slices in memory": (
        ["%s = ((f32[64,256]{1,0}), f32[2,256]{1,0}, s32[]{:S(2)}) slice-start(%table), slice={[0:2], [0:256]}"],
        *(4096, 2048, 1),
    ),
    "scalars on the chip": (["%n = s32[]{:T(128)S(6)} copy(%i)", "ROOT %r = s32[]{:T(128)} negate(%n)"], 8, 4, 2),
    "no operands": (
        ["%n = f32[256]{0} iota(), iota_dimension=0", "ROOT %r = f32[256]{0} fusion(), kind=kLoop, calls=%ones"],
        *(2048, 2048, 2),
    ),
    "slice": (["ROOT %r = f32[1,256]{1,0} slice(%table), slice={[3:4], [0:256]}"], 2048, 1024, 1),
    "slice in a fusion": (["ROOT %r = f32[1,256]{1,0} fusion(%table, %i), kind=kLoop, calls=%rows"], 2052, 1024, 1),
    "slice and all in a fusion": (
        ["%r = (f32[1,256]{1,0}, f32[64,256]{1,0}) fusion(%table, %i), kind=kLoop, calls=%row_and_all"],
        *(65536 + 4 + 1024 + 65536, 1024 + 65536, 1),
    ),
    "update in place": (
        ["%row = f32[1,256]{1,0} bitcast(%x)", "ROOT %r = f32[64,256]{1,0} dynamic-update-slice(%table, %row, %i, %i)"],
        *(1024 + 4 + 4 + 1024, 1024, 1),
    ),
    "update in place in a fusion": (
        ["%row = f32[1,256]{1,0} bitcast(%x)", "%r = f32[64,256]{1,0} fusion(%table, %row, %i), kind=kLoop, calls=%in_place"],
        *(1024 + 4 + 1024, 1024, 1),
    ),
    "call": (["ROOT %r = f32[256]{0} call(%x, %y), to_apply=%fused"], 6144, 2048, 2),
    "asynchronous": (
        [
            "%s = ((f32[256]{0}, f32[256]{0}), f32[256]{0}, u32[]) async-start(%x, %y), calls=%fused",
            "ROOT %r = f32[256]{0} async-done(%s)",
        ],
        *(6144, 2048, 2),
    ),
    "known loop": (
        [
            "%r = (s32[], f32[256]{0}) while(%state), condition=%more, body=%turn, "
            'backend_config={"known_trip_count":{"n":"9"},"other":{}}'
        ],
        *(9 * 2048 + 10 * 9, 9 * 1024 + 10, 1 + 9 + 10),
    ),
    "reduction": (["%zero = f32[] constant(0)", "%r = f32[] reduce(%x, %zero), dimensions={0}, to_apply=%add"], 1032, 4, 1),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("choice", [hlo.MOST, hlo.LEAST], ids=["most", "least"])
def test_costs(name, choice):
    lines, everything, written, launches = COSTS[name]
    assert hlo.count(program(*lines), choice) == {
        key: value for key, value in {"bytes": everything, "written": written, "launches": launches}.items() if value
    }


@pytest.mark.parametrize(
    "branches", ["branch_computations={%untaken, %taken}", "true_computation=%taken, false_computation=%untaken"]
)
def test_one_branch_of_a_conditional(branches):
    both = program(f"ROOT %r = f32[256]{{0}} conditional(%ok, %pair, %pair), {branches}")
    assert hlo.count(both) == {"bytes": 2048, "written": 1024, "launches": 2}
    assert hlo.count(both, hlo.LEAST) == {"launches": 1}


def test_a_loop_of_unknown_length():
    """One turn at most: the condition is asked twice. Or none."""
    loop = program("%r = (s32[], f32[256]{0}) while(%state), condition=%more, body=%turn")
    assert hlo.count(loop) == {"bytes": 2048 + 2 * 9, "written": 1024 + 2, "launches": 4}
    assert hlo.count(loop, hlo.LEAST) == {"bytes": 9, "written": 1, "launches": 2}


@pytest.mark.parametrize("kind", hlo.COLLECTIVES)
def test_collectives(kind):
    one = program(f"ROOT %r = {KIB} {kind}(%x), replica_groups={{{{0,1}}}}, to_apply=%add")
    two = program(f"%s = {KIB} {kind}-start(%x), to_apply=%add", f"ROOT %r = {KIB} {kind}-done(%s)")
    assert hlo.count(one)[kind] == hlo.count(two)[kind] == 1
    assert sum(hlo.count(one)[other] for other in hlo.COLLECTIVES) == 1
    assert hlo.count(one)["launches"] == hlo.count(two)["launches"] == 1


def test_a_collective_in_a_call_and_in_a_loop():
    text = HELPERS.replace("%y = f32[256]{0} negate(%x)", "%y = f32[256]{0} all-reduce(%x), to_apply=%add")
    loop = "%r = (s32[], f32[256]{0}) while(%state), condition=%more, body=%turn"
    again = hlo.read(f"{text}\nENTRY %main (x: f32[256]) -> f32[256] {{{PARAMETERS}  {loop}\n}}\n")
    assert hlo.count(again)["all-reduce"] == 1
    assert hlo.count(again, hlo.LEAST)["all-reduce"] == 0


def test_operations():
    text = f"{HELPERS}\nENTRY %main (x: f32[256]) -> f32[256] {{{PARAMETERS}  ROOT %r = f32[256]{{0}} negate(%x)\n}}\n"
    assert hlo.operations(text, "negate", (256,)) == 3  # two in helpers
    assert hlo.operations(text, "negate", (64, 256)) == 1
    assert hlo.operations(text, "add", ()) == 1
    assert hlo.operations(text, "sine", (256,)) == 0


X = jax.ShapeDtypeStruct((512, 1000), jnp.float32)
COMPILED = {
    "elementwise": (lambda x, y: (jnp.sin(x) * y, x + y), X, X),
    "sum": (lambda x: jnp.sum(x * x) * 2, X),
    "matrix product": (lambda x: x @ x.T, X),
    "one row": (lambda x: x[3] * 2, X),
    "packed": (lambda x, y: jnp.concatenate([x.ravel(), y.ravel()]) * 2, X, X),
    "rows replaced": (
        lambda x, y: jax.lax.dynamic_update_slice(x, 2 * y, (3, 0)),
        X,
        jax.ShapeDtypeStruct((1, 1000), jnp.float32),
    ),
    "bfloat16": (lambda x: x.astype(jnp.bfloat16), X),
}


@pytest.mark.parametrize("name", COMPILED)
def test_as_many_bytes_as_xla_counts(name):
    step, *arguments = COMPILED[name]
    compiled = jax.jit(step, donate_argnums=(0,) if name == "rows replaced" else ()).lower(*arguments).compile()
    expected = compiled.cost_analysis()["bytes accessed"]
    assert hlo.count(hlo.read(compiled.as_text()))["bytes"] == pytest.approx(expected, rel=1e-3)
