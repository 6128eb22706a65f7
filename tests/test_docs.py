"""Every Python block in the documentation runs and prints what the page shows, and every link leads somewhere."""

import re
from pathlib import Path

import jax
import pytest
from pages import FENCE, alike, run, shown_below

ROOT = Path(__file__).parent.parent
NOT_OURS = {"_build", "notebooks"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if NOT_OURS.isdisjoint(path.relative_to(ROOT).parts)
)
NOT_ON_THE_SITE = {"README.md"}
WIDTH = 88
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)


@pytest.mark.newest
@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them write files
    text = (ROOT / page).read_text()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        for block, printed in run(text, page):
            below = shown_below(text, block)
            shown = below.group(1) if below else ""
            message = f"{page}: it prints\n{printed}\nand the page shows\n{shown}\nUse scripts/refresh_outputs.py."
            assert not printed or alike(printed, shown), message


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("loss 0.0612", "loss 0.0614", True),
        ("loss 0.0612", "loss 0.0642", False),
        ("rate 1e-04", "rate 2e-04", False),
        ("a  1.0\nb  2.0", "a 1.0\nb 2.0", True),
        ("compiled: 1", "compiled: 2", False),
        ("1,024 bytes", "1,025 bytes", False),
        ("loss 0.5", "rate 0.5", False),
        ("loss 0.5", "loss 0.5 0.5", False),
        ("loss 0.5", "", False),
    ],
)
def test_what_is_alike(printed, shown, same):
    assert alike(printed, shown) == same


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NOT_ON_THE_SITE])
def test_code_fits_its_column(page):
    blocks = [block for block in FENCE.finditer((ROOT / page).read_text()) if block.group(3) in ("python", "py", "sh")]
    long = [line for block in blocks for line in block.group(4).splitlines() if len(line) > WIDTH]
    assert not long, "\n".join([page, *long])


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
