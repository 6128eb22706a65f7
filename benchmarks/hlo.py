"""Reading compiled programs: the bytes they move through memory, what they launch, how their devices talk.

The text of a compiled program (`compiled.as_text()`, HLO) is a list of computations, each a list of instructions:

    %fusion.1 = f32[8,128]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused_computation

An instruction reads its operands from memory and writes its results there, except what lies in on-chip memory (`S(1)` in a
layout). What happens inside a fusion moves nothing; but of an array that a fusion only slices, the slices count.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAME = re.compile(r"%([\w.\-]+)")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What neither runs nor moves anything.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier"}
FREE |= {"partition-id", "replica-id"}
FREE_CALLS = ('"ConcatBitcast"', '"AllocateBuffer"')
SLICES = ("slice", "dynamic-slice", "gather")
IN_PLACE = "dynamic-update-slice"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Which branch of a conditional runs, and how often a loop does whose length is not known.
Choice = tuple[Callable[..., Counter[str]], int]
MOST: Choice = (max, 1)
LEAST: Choice = (min, 0)


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
        name: of its result.
        shape: of its result, as text: `f32[8,128]{1,0}`, or several in parentheses.
        code: the operation.
        operands: the names of what it takes; the number of a parameter.
        rest: its attributes, as text.
        root: whether its result is the computation's.
    """

    name: str
    shape: str
    code: str
    operands: list[str]
    rest: str
    root: bool

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        found = re.search(rf"\b{attribute}=\{{?((?:%[\w.\-]+(?:, )?)+)", self.rest)
        return NAME.findall(found[1]) if found else []


Body = list[Instruction]


class Program(NamedTuple):
    """Computations by name, and the name of the first."""

    computations: dict[str, Body]
    entry: str


def read(text: str) -> Program:
    """The program in the text of a compiled one."""
    computations: dict[str, Body] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("  ") and " = " in line:
            current.append(instruction(line.strip()))
    return Program(computations, entry)


def instruction(line: str) -> Instruction:
    """The instruction on a line."""
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    shape, rest = cut(rest, " ")
    code, _, rest = rest.partition("(")
    inside, rest = cut(rest, ")")
    operands = NAME.findall(inside) or inside.split()
    return Instruction(name.removeprefix("%"), shape, code, operands, rest, line.startswith("ROOT "))


def cut(text: str, end: str) -> tuple[str, str]:
    """`text` before and after the first `end` that is in no parentheses of its own."""
    depth = 0
    for i, char in enumerate(text):
        if depth == 0 and char == end:
            return text[:i], text[i + 1 :]
        depth += (char in "([{") - (char in ")]}")
    return text, ""


def count(program: Program, choice: Choice = MOST) -> Counter[str]:
    """What a run of `program` costs: "bytes" read and written, those "written", "launches", and each kind of collective.

    Args:
        program: what `read` returned.
        choice: `MOST` for the branch of every conditional that moves most, and one turn of every loop whose length is not
            known; `LEAST` for the branch that moves least, and no turn.
    """
    return run(program, program.entry, choice)


def collectives(compiled: Any) -> dict[str, int]:
    """How many of each kind of collective a compiled program has, of those that it has."""
    found = count(read(compiled.as_text()))
    return {kind: int(found[kind]) for kind in COLLECTIVES if found[kind]}


def megabytes(compiled: Any) -> dict[str, float]:
    """The memory that a compiled program needs, and what of it is temporary."""
    sizes = compiled.memory_analysis()
    temporary = sizes.temp_size_in_bytes
    needed = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes + temporary
    return {"memory": needed / 1e6, "temp_mb": temporary / 1e6}


def operations(text: str, code: str, shape: tuple[int, ...]) -> int:
    """How many instructions of a kind, fused ones included, have a result of `shape`."""
    dims = f"[{','.join(map(str, shape))}]"
    lines = (each for body in read(text).computations.values() for each in body)
    return sum(each.code == code and dims in each.shape for each in lines)


def run(program: Program, name: str, choice: Choice) -> Counter[str]:
    """What a computation costs."""
    body = program.computations[name]
    shapes = {each.name: each.shape for each in body}
    return sum((cost(program, each, shapes, choice) for each in body), Counter())


def cost(program: Program, each: Instruction, shapes: dict[str, str], choice: Choice) -> Counter[str]:
    """What an instruction costs; `shapes` has those of its operands."""
    again = functools.partial(run, program, choice=choice)
    if each.code in FREE or each.code.endswith("-done") or any(call in each.rest for call in FREE_CALLS):
        return Counter()
    if each.code in ("call", "async-start"):
        return again((each.called("to_apply") or each.called("calls"))[0])
    if each.code == "while":
        known = TURNS.search(each.rest)
        turns, (body,), (condition,) = int(known[1]) if known else choice[1], each.called("body"), each.called("condition")
        return sum([again(condition), *turns * [again(condition), again(body)]], Counter(launches=1))
    if each.code == "conditional":
        branches = each.called("branch_computations") or each.called("true_computation") + each.called("false_computation")
        return Counter(launches=1) + choice[0](map(again, branches), key=lambda counts: counts["bytes"])
    collectives = Counter(kind for kind in COLLECTIVES if each.code in (kind, f"{kind}-start"))
    taken, made = moved(program, each, shapes)
    return Counter(launches=1, bytes=int(taken + made), written=int(made)) + collectives


def moved(program: Program, each: Instruction, shapes: dict[str, str]) -> tuple[float, float]:
    """The bytes of memory that an instruction reads, and writes."""
    results = sizes(each.shape)
    if each.code == "copy-start":
        return results[1], results[0]
    if each.code == "slice-start":
        piece = extents(each.shape)[-2]
        return piece * (results[0] > 0), piece * (results[-2] > 0)
    body, names = [each._replace(root=True)], each.operands
    if each.code == "fusion":
        body = program.computations[each.called("calls")[0]]
        names = [name for _, name in sorted((int(p.operands[0]), p.name) for p in body if p.code == "parameter")]
    operands = (sum(sizes(shapes.get(name, ""))) for name in each.operands)
    taken = sum(min(size, taken_of(body, name)) for size, name in zip(operands, names, strict=True))
    return taken, sum(map(min, results, made_of(body, shapes)))


def taken_of(body: Body, name: str) -> float:
    """The bytes that a computation reads of its operand `name` if it only slices it; infinity if it may read all of it."""
    users = [each for each in body if name in each.operands]
    if any(each.operands.index(name) > 0 or each.code not in (*SLICES, IN_PLACE) for each in users):
        return math.inf
    return sum(sum(extents(each.shape)) for each in users if each.code in SLICES)


def made_of(body: Body, shapes: dict[str, str]) -> list[float]:
    """The bytes that a computation writes of each of its results if it only updates a slice; else infinity."""
    lines = {each.name: each for each in body}
    (root,) = (each for each in body if each.root)
    results = [lines.get(name) for name in root.operands] if root.code == "tuple" else [root] * len(extents(root.shape))
    shapes = shapes | {each.name: each.shape for each in body}
    updates = (each.operands[1] if each and each.code == IN_PLACE else "" for each in results)
    return [sum(extents(shapes[update])) if update else math.inf for update in updates]


def sizes(shape: str) -> list[int]:
    """The bytes in memory of each array in a shape; none of what lies on the chip."""
    places = (layout for _, _, layout in ARRAY.findall(shape))
    return [0 if "S(" in layout else extent for extent, layout in zip(extents(shape), places, strict=True)]


def extents(shape: str) -> list[int]:
    """The bytes of each array in a shape, wherever it lies."""
    return [math.prod(map(int, filter(None, dims.split(",")))) * bits(kind) // 8 for kind, dims, _ in ARRAY.findall(shape)]


def bits(kind: str) -> int:
    """The bits of an element: 16 for `bf16`; 0 for `token`."""
    return 8 if kind == "pred" else int((re.search(r"\d+", kind) or ["0"])[0])
