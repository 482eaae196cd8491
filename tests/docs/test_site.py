"""The documentation as a site: it builds, and all of it leads somewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]

REASON = "the site needs MkDocs (make install, or pip install dsno[docs])"
config = pytest.importorskip("mkdocs.config", reason=REASON)
pytest.importorskip("material", reason=REASON)
pytest.importorskip("mkdocstrings_handlers.python", reason=REASON)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `make docs` would write; a warning is an error."""
    from mkdocs.commands.build import build

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        loaded = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        assert loaded.strict
        build(loaded)
    return folder


class _Links(HTMLParser):
    """Where a page leads, and the places in it that can be led to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name == "id" and value:
                self.anchors.add(value)


def test_every_link_of_every_page_leads_to_a_file_and_a_place_in_it(site: Path) -> None:
    pages = {page: _Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 25
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)} links to {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|iframe)[^>]+src="https?:', text), page
        assert not re.search(r'<link[^>]+stylesheet[^>]+href="https?:', text), page


def test_llms_txt_lists_every_page_as_markdown(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# dsno\n\n> ")
    listed = re.findall(r"^- \[.+\]\((\S+\.md)\): \S", text, re.MULTILINE)
    made = {str(page.relative_to(site)) for page in site.rglob("*.md")}
    assert set(listed) == made
    assert len(listed) == len(made)
    assert {f"results/{page.name}" for page in (ROOT / "results").glob("*.md")} <= made
    for name in listed:
        page = site / name
        assert "\n::: " not in page.read_text(encoding="utf-8")


def test_plain_pages_are_the_repositorys_with_links_among_them(site: Path) -> None:
    plain = (site / "finish.md").read_text(encoding="utf-8")
    ours = (ROOT / "docs" / "finish.md").read_text(encoding="utf-8")
    assert plain == ours.replace("(../results/", "(results/")
    front = (site / "index.md").read_text(encoding="utf-8")
    assert "[docs/teachers.md](teachers.md)" in front
    assert "](examples/own_teacher.py)" in front
    assert (site / "examples" / "own_teacher.py").read_bytes() == (
        ROOT / "examples" / "own_teacher.py"
    ).read_bytes()


def test_plain_reference_has_signatures_and_docstrings(site: Path) -> None:
    plain = (site / "reference" / "diffusion.md").read_text(encoding="utf-8")
    assert "### `dsno.diffusion.solvers.solution.solve(denoiser: DenoiserProtocol" in plain
    assert "nfe: network evaluations spent per sample." in plain
    keys = (site / "reference" / "recipe.md").read_text(encoding="utf-8")
    assert (
        "### `dsno.recipes.schema.Train.weight_max: Result[Positive] = 10000.0`\n\nCap of" in keys
    )
    assert "schema.Section" not in keys  # not among the members that the page names


def test_the_notebook_is_a_page_with_its_pictures(site: Path) -> None:
    plain = (site / "quickstart.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\((quickstart-\d\.png)\)", plain)
    assert len(pictures) == 3
    for name in pictures:
        assert (site / name).read_bytes().startswith(b"\x89PNG")
    assert "DDIM, 8 evaluations" in plain
