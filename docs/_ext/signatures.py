"""Types in signatures, as the source has them: at run time `PyTree` is `Any`, and so is what a field may be given."""

import ast
import dataclasses
import inspect
import re
import textwrap

# What a reader should see in the place of names that only the code and type checkers know.
ALIASES = {
    "ScalarOrSchedule": "float | Schedule",
    "DecayRateOrSchedule": "float | Schedule",
    "AxesOrFunction": "int | tuple | Callable",
    "Factor": "float",
    "Count": "int | Array",
    "Scalar": "float | Array",
    "DecayMask": "Callable",
    "jax.Array": "Array",
    "np.ndarray": "ndarray",
}
NAMES = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in ALIASES))


class Text(str):
    """What is shown as it is, and not as a string in quotes."""

    def __repr__(self):
        return str(self)


def typed(app, what, name, obj, options, signature, returns):
    """The signature of a class of fields, or of a function, with its types; of an abstract class none."""
    if signature is None:
        return None  # autodoc found none, and has no place for one
    if inspect.isclass(obj):
        if inspect.isabstract(obj):
            return "", None
        has_fields = dataclasses.is_dataclass(obj) or hasattr(obj, "_fields")
        return (
            (with_types(inspect.signature(obj), annotations(obj)), None)
            if has_fields
            else None
        )
    function = inspect.unwrap(obj)
    if not inspect.isfunction(function):
        return None
    node, bound = parsed(function), inspect.signature(obj)
    if what == "method":
        bound = bound.replace(parameters=list(bound.parameters.values())[1:])
    return with_types(
        bound, {arg.arg: shown(arg.annotation) for arg in arguments(node.args)}
    ), shown(node.returns)


def with_types(signature, types):
    parameters = [
        with_type(parameter, types.get(parameter.name) or "Any")
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))


def with_type(parameter, text):
    if parameter.default is None and not re.search(r"\b(None|Any)\b", text):
        text += " | None"
    if parameter.default is dataclasses.MISSING:
        parameter = parameter.replace(default=Text("MISSING"))
    return parameter.replace(annotation=Text(text))


def annotations(cls):
    bodies = [
        parsed(base).body
        for base in reversed(cls.__mro__)
        if base.__module__.startswith("mithril_opt")
    ]
    return {
        node.target.id: shown(node.annotation)
        for body in bodies
        for node in body
        if isinstance(node, ast.AnnAssign)
    }


def arguments(args):
    return [
        *args.posonlyargs,
        *args.args,
        *filter(None, [args.vararg]),
        *args.kwonlyargs,
        *filter(None, [args.kwarg]),
    ]


def parsed(obj):
    return ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]


def shown(node):
    return node and NAMES.sub(lambda match: ALIASES[match.group()], ast.unparse(node))


def setup(app):
    app.connect("autodoc-process-signature", typed)
    return {"parallel_read_safe": True}
