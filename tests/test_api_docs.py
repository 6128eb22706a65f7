"""Every public name is in the reference, once, with a docstring that says what it takes and an example that runs."""

import dataclasses
import doctest
import inspect
import re
import runpy
from pathlib import Path

import pytest

import mithril_opt

DOCS = Path(__file__).parent.parent / "docs"
reference = runpy.run_path(str(DOCS / "_ext" / "reference.py"))["reference"]
PAGES = [reference(page.read_text()) for page in sorted((DOCS / "reference").glob("*.md"))]
ENTRY = re.compile(r"^\.\. auto(class|exception|function):: (\w+)(?:\(…\))?$", re.MULTILINE)
ENTRIES = [name for page in PAGES for _, name in ENTRY.findall(page)]
SUMMARIES = [name for page in PAGES for name in re.findall(r"^   (\w+)$", page, re.MULTILINE)]
NAMES = sorted(mithril_opt.__all__)
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(mithril_opt, name))]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(mithril_opt, name))]
SECTION = r"^{}:\n((?:    .*\n?|\n)+)"


def docstring(name):
    return inspect.cleandoc(getattr(mithril_opt, name).__doc__ or "")


def section(text, heading):
    found = re.search(SECTION.format(heading), text, re.MULTILINE)
    return found.group(1) if found else ""


def arguments_described(text):
    """The names in the section Args, or Attributes, of a docstring."""
    return re.findall(r"^    \*{0,2}(\w+): \S", section(text, "Args") + section(text, "Attributes"), re.MULTILINE)


def test_the_reference_has_every_public_name_once():
    assert sorted(ENTRIES) == NAMES
    assert sorted(SUMMARIES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_docstring_is_its_own(name):
    """The first line is a sentence, and not what a dataclass or a base class supplies."""
    text = docstring(name)
    assert text
    assert not text.startswith(f"{name}(")
    public = getattr(mithril_opt, name)
    inherited = [inspect.cleandoc(base.__doc__ or "") for base in public.__mro__[1:]] if inspect.isclass(public) else []
    assert text not in inherited


@pytest.mark.parametrize("name", CLASSES + FUNCTIONS)
def test_example_is_there(name):
    """That it runs is tested where it stands: pytest collects the doctests of the package."""
    examples = doctest.DocTestParser().get_examples(section(docstring(name), "Example"))
    assert examples
    assert any(example.want for example in examples) or name in {"Frozen"}


@pytest.mark.parametrize("name", CLASSES + FUNCTIONS)
def test_arguments_are_described(name):
    """Each argument of a function, each field of a class, in the order of the signature."""
    public = getattr(mithril_opt, name)
    if inspect.isclass(public) and (not fields(public) or issubclass(public, Exception | str)):
        return  # a base, or what Python's own classes take
    assert arguments_described(docstring(name)) == list(inspect.signature(public).parameters)


def fields(cls):
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else getattr(cls, "_fields", ())


METHODS = [
    (name, method)
    for name in CLASSES
    for method, function in vars(getattr(mithril_opt, name)).items()
    if not method.startswith("_") and inspect.isfunction(function) and function.__doc__
]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_methods_describe_no_other_arguments(name, method):
    function = getattr(getattr(mithril_opt, name), method)
    assert set(arguments_described(inspect.cleandoc(function.__doc__))) <= set(inspect.signature(function).parameters)


def test_the_changelog_has_every_public_name():
    text = (DOCS.parent / "CHANGELOG.md").read_text()
    families = [name for name in NAMES if name.startswith("get_") and name != "get_scheduler"]  # "transformers' `get_*`"
    assert [name for name in NAMES if f"`{name}`" not in text and name not in families] == []
