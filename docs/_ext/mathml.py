"""Formulas as MathML, which browsers set by themselves: no script, no fonts from elsewhere, and they work without a network."""

from docutils import nodes
from docutils.utils.math import latex2mathml


def inline(self, node):
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    self.body.append(
        f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>'
    )
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
