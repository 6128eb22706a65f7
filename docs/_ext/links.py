"""Public names in backticks are links to their entries in the reference."""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

import mithril_opt

# Heads of columns in which `Adam` is another library's.
OTHERS = re.compile(
    "torch|PyTorch|optax|Keras|timm|transformers|Mithril|Trainer|TrainingArguments"
    "|configure_optimizers"
)
NAME = re.compile(r"(\w+)(\(.*\))?")  # `AdamW`, and `AdamW(weight_decay=0.1)`
NO_LINKS = (
    nodes.reference,
    nodes.title,
    nodes.rubric,
    addnodes.pending_xref,
    addnodes.download_reference,
)


class Links(SphinxTransform):
    default_priority = 500

    def apply(self):
        for literal in list(self.document.findall(nodes.literal)):
            match = NAME.fullmatch(literal.astext())
            name = match.group(1) if match else None
            if name in mithril_opt.__all__ and not is_another(literal):
                literal.replace_self(self.link(literal, name))

    def link(self, literal, name):
        target = {
            "refdomain": "py",
            "reftype": "obj",
            "reftarget": f"mithril_opt.{name}",
            "refexplicit": True,
        }
        return addnodes.pending_xref(
            "", literal.deepcopy(), refdoc=self.env.docname, refwarn=True, **target
        )


def is_another(literal):
    """Whether it is a link already, or a name in a table's column of another library."""
    above = literal
    while (above := above.parent) is not None:
        if isinstance(above, NO_LINKS):
            return True
        if isinstance(above, nodes.entry):
            return bool(OTHERS.search(header_of(above)))
    return False


def header_of(entry):
    """The head of the column that a cell is in."""
    head = next(entry.parent.parent.parent.findall(nodes.thead), None)
    return head[0][entry.parent.index(entry)].astext() if head else ""


def setup(app):
    app.add_transform(Links)
    return {"parallel_read_safe": True}
