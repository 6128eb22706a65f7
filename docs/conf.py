"""The documentation: `make docs`."""

import inspect
import re
import shutil
from pathlib import Path

import mithril_opt

HERE = Path(__file__).parent

project = "mithril_opt"
author = "the mithril_opt authors"
release = version = mithril_opt.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "mithril_opt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False, "show_toc_level": 2}

nb_execution_mode = "off"  # the notebooks are committed with what they print, and the tests run them
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # the docstrings say what each argument is
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Returns|Yields):$")
CODE = re.compile(r"``.+?``|`[^`]+`")
PUBLIC = re.compile(r"^\.\. public:: (.+)$", re.MULTILINE)


def copy_notebooks():
    """The notebooks live beside this folder, and Sphinx only reads what is in it: copies, and a page that lists them."""
    target = HERE / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    notebooks = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        shutil.copy(notebook, target)
    names = "\n".join(notebook.stem for notebook in notebooks)
    page = f"# Notebooks\n\nThey run from top to bottom on a CPU, a GPU or a TPU.\n\n```{{toctree}}\n{names}\n```\n"
    (target / "index.md").write_text(page)


def reference(text):
    """`.. public:: optimizers wrappers.clip` as the entries of what is public there: what is new has its entry for free."""
    return PUBLIC.sub(lambda match: "\n".join(entries(match.group(1).split())), text)


def entries(modules):
    public = [(name, getattr(mithril_opt, name)) for name in mithril_opt.__all__]
    there = [(name, value) for module in modules for name, value in sorted(public, key=place) if lives_in(value, module)]
    summary = [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name, _ in there), ""]
    return [".. currentmodule:: mithril_opt", "", *summary, *(line for name, value in there for line in entry(name, value))]


def place(item):
    value = inspect.unwrap(item[1])
    defined = inspect.isclass(value) or inspect.isfunction(value)
    return (value.__module__, inspect.getsourcelines(value)[1]) if defined else ("", 0)


def lives_in(value, module):
    return f"{value.__module__}.".startswith(f"mithril_opt.{module}.")


def entry(name, value):
    kind = "function" if not inspect.isclass(value) else "exception" if issubclass(value, Exception) else "class"
    members = ", ".join(methods(value)) if kind == "class" else ""
    return [f".. auto{kind}:: {name}", *([f"   :members: {members}"] if members else []), ""]


def methods(cls):
    """The methods that a class explains itself and no base of it has."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    own = {name: value for name, value in vars(cls).items() if not name.startswith("_") and name not in inherited}
    return [name for name, value in own.items() if inspect.isfunction(value) and value.__doc__]


def to_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text: single backticks around code, formulas in indented blocks. Make reStructuredText of them."""
    literal, section, out = False, None, []
    for line in lines:
        heading = SECTION.match(line)
        section = heading.group(1) if heading else None if line and not line.startswith(" ") else section
        # Within a section everything is indented; outside of one what is indented is a formula.
        formula = section is None and line.startswith("    ")
        if formula and not literal:
            out += ["", ".. code-block:: text", ""]
        literal = formula or (literal and not line.strip())
        out.append(line if literal or section == "Example" else in_rst(line))
    lines[:] = out


def in_rst(line):
    """Code in single backticks as a link where it is a public name, as code otherwise; bars are no substitutions."""
    parts, last = [], 0
    for match in CODE.finditer(line):
        parts += [line[last : match.start()].replace("|", r"\|"), code(match.group())]
        last = match.end()
        parts += [r"\ "] if line[last : last + 1].isalnum() else []  # `Array`s
    return "".join([*parts, line[last:].replace("|", r"\|")])


def code(text):
    name = text.strip("`")
    return f":py:obj:`~mithril_opt.{name}`" if name in mithril_opt.__all__ else f"``{name}``"


def setup(app):
    copy_notebooks()
    app.connect("source-read", lambda app, docname, source: source.__setitem__(0, reference(source[0])))
    app.connect("autodoc-process-docstring", to_rst, priority=1)  # before napoleon
