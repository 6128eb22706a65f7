"""Formulas as MathML, which browsers set by themselves; where the network reaches it, MathJax sets them more finely."""

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.ext.mathjax import MATHJAX_URL


def inline(self, node):
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    self.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def add_mathjax(app, page, template, context, doctree):
    if "<math" in context.get("body", ""):
        app.add_js_file(MATHJAX_URL, defer="defer")  # on this page alone


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("html-page-context", add_mathjax)
    return {"parallel_read_safe": True}
