"""Docstrings are plain text: single backticks around code, formulas in indented blocks. This makes reStructuredText of them."""

import re

SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Returns|Yields):$")
CODE = re.compile(r"``.+?``|`[^`]+`")


def to_rst(app, what, name, obj, options, lines):
    literal, section, out = False, None, []
    for line in lines:
        heading = SECTION.match(line)
        section = (
            heading.group(1)
            if heading
            else None
            if line and not line.startswith(" ")
            else section
        )
        # Within a section everything is indented; outside of one what is indented is a formula.
        formula = section is None and line.startswith("    ")
        if formula and not literal:
            out += ["", ".. code-block:: text", "   :class: formula", ""]
        literal = formula or (literal and not line.strip())
        out.append(line if literal or section == "Example" else in_rst(line))
    lines[:] = out


def in_rst(line):
    """Code in single backticks as code; bars are no substitutions."""
    parts, last = [], 0
    for match in CODE.finditer(line):
        parts += [
            line[last : match.start()].replace("|", r"\|"),
            f"``{match.group().strip('`')}``",
        ]
        last = match.end()
        parts += [r"\ "] if line[last : last + 1].isalnum() else []  # `Array`s
    return "".join([*parts, line[last:].replace("|", r"\|")])


def setup(app):
    app.connect("autodoc-process-docstring", to_rst, priority=1)  # before napoleon
    return {"parallel_read_safe": True}
