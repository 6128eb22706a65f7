"""The documentation: `make docs`."""

import json
import shutil
import sys
from pathlib import Path

import mithril_opt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "mithril_opt"
author = "the mithril_opt authors"
release = version = mithril_opt.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "docstrings",
    "links",
    "mathml",
    "reference",
    "signatures",
]
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "mithril_opt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_navbar_depth": 1,
    "use_download_button": False,
    "show_toc_level": 2,
}
html_math_renderer = "mathml"

nb_execution_mode = (
    "off"  # the notebooks are committed with what they print, and the tests run them
)
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = (
    "div.highlight:not(.highlight-text *, .output *) pre"  # no outputs
)

add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them

NOTEBOOKS = """# Notebooks

They run from top to bottom on a CPU, a GPU or a TPU.

```{{toctree}}
:hidden:

{names}
```

{rows}
"""


def copy_notebooks():
    """The notebooks live beside this folder, and Sphinx only reads what is in it: copies, and a page that lists them."""
    target = HERE / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    notebooks = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        (target / notebook.name).write_text(with_download(notebook))
    names = "\n".join(notebook.stem for notebook in notebooks)
    rows = "\n".join(
        f"- [](./{notebook.name}) ({download('download', notebook)})"
        for notebook in notebooks
    )
    (target / "index.md").write_text(NOTEBOOKS.format(names=names, rows=rows))


def with_download(notebook):
    """The notebook with a line below its title that offers the file itself."""
    content = json.loads(notebook.read_text())
    title, *rest = "".join(content["cells"][0]["source"]).split("\n")
    content["cells"][0]["source"] = "\n".join(
        [title, "", download("Download this notebook", notebook), *rest]
    )
    return json.dumps(content)


def download(text, notebook):
    return f"{{download}}`{text} <../../notebooks/{notebook.name}>`"


def links_to_copies(app, docname, source):
    """A link to a notebook leads to its page."""
    if not docname.startswith("notebooks/"):
        source[0] = source[0].replace("../notebooks/", "notebooks/")


def setup(app):
    copy_notebooks()
    app.connect("source-read", links_to_copies)
