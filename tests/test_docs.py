"""Every Python block in the documentation runs."""

import re
import textwrap
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page):
    namespace = {"__name__": page}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        for _, code in BLOCK.findall((ROOT / page).read_text()):
            exec(compile(textwrap.dedent(code), page, "exec"), namespace)
