"""`.. public:: optimizers wrappers.clip` in a page: the entries of what is public there, so that what is new has its entry."""

import inspect
import re

import mithril_opt

PUBLIC = re.compile(r"^\.\. public:: (.+)$", re.MULTILINE)


def reference(text):
    return PUBLIC.sub(lambda match: "\n".join(entries(match.group(1).split())), text)


def entries(modules):
    public = [(name, getattr(mithril_opt, name)) for name in mithril_opt.__all__]
    there = [
        (name, value)
        for module in modules
        for name, value in sorted(public, key=place)
        if lives_in(value, module)
    ]
    summary = [
        ".. autosummary::",
        "   :nosignatures:",
        "",
        *(f"   {name}" for name, _ in there),
        "",
    ]
    return [
        ".. currentmodule:: mithril_opt",
        "",
        *summary,
        *(line for name, value in there for line in entry(name, value)),
    ]


def place(item):
    value = inspect.unwrap(item[1])
    defined = inspect.isclass(value) or inspect.isfunction(value)
    return (value.__module__, inspect.getsourcelines(value)[1]) if defined else ("", 0)


def lives_in(value, module):
    return f"{value.__module__}.".startswith(f"mithril_opt.{module}.")


def entry(name, value):
    kind = (
        "function"
        if not inspect.isclass(value)
        else "exception"
        if issubclass(value, Exception)
        else "class"
    )
    members = ", ".join(methods(value)) if kind == "class" else ""
    # autodoc does not see the signature of a function with a derivative of its own.
    signature = "" if inspect.isclass(value) or inspect.isfunction(value) else "(…)"
    return [
        f".. auto{kind}:: {name}{signature}",
        *([f"   :members: {members}"] if members else []),
        "",
    ]


def methods(cls):
    """The methods that a class explains itself and no base of it has."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    own = {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_") and name not in inherited
    }
    return [
        name
        for name, value in own.items()
        if inspect.isfunction(value) and value.__doc__
    ]


def setup(app):
    app.connect(
        "source-read",
        lambda app, docname, source: source.__setitem__(0, reference(source[0])),
    )
    return {"parallel_read_safe": True}
