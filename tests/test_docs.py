"""Every Python block in the documentation runs, and every link leads somewhere."""

import re
import textwrap
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
NOT_OURS = {"_build", "notebooks"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if NOT_OURS.isdisjoint(path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^( *)(`{3,})(.*?)\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them write files
    namespace = {"__name__": page}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        text = (ROOT / page).read_text()
        for block in FENCE.finditer(text):
            if block.group(3) == "python":
                lines_before = "\n" * text.count("\n", 0, block.start(4))  # so that a traceback names the right one
                exec(compile(lines_before + textwrap.dedent(block.group(4)), page, "exec"), namespace)


def anchors(text):
    """The anchors of the headings of a page, as GitHub and myst make them."""
    headings = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Files and headings within the repository; the network is not asked."""
    text = FENCE.sub("", (ROOT / page).read_text())
    for link in LINK.findall(text):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (ROOT / page).parent / target if target else ROOT / page
        if file == ROOT / "docs" / "notebooks" / "index.md":
            continue  # made when the site is built
        assert file.is_file(), f"{page} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(file.read_text()), f"{page} links to {link}, where there is no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") and page != "docs/index.md"])
def test_page_is_in_the_table_of_contents(page):
    entry = page.removeprefix("docs/").removesuffix(".md")
    assert re.search(rf"^{re.escape(entry)}$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)


COMMANDS = re.findall(r"`(tests/\w+\.py)(?: -k (?:\"([^\"]+)\"|(\w+)))?`", (ROOT / "README.md").read_text())


@pytest.mark.parametrize(("file", "several", "one"), COMMANDS)
def test_tests_that_the_readme_names_exist(file, several, one):
    """Every word of the selection is in the name, or in the parameters, of a test of the file."""
    text = (ROOT / file).read_text()
    for word in (several or one).split(" or "):
        assert re.search(rf"def test_\w*{word}", text) or (file.endswith("test_docs.py") and f"docs/{word}.md" in PAGES), word
