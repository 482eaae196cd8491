"""Make one site of the repository's Markdown: a hook of MkDocs.

Every page links to files of the repository by relative paths, as GitHub follows them. On the site
`docs/` is the root, README.md its front page and the notebook a page; what else a page links to (a
table of results, an example, raw numbers) is put there under its path in the repository. A link
that leads nowhere stays as it is, and a strict build fails with it.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NOTEBOOK = "examples/quickstart.ipynb"
RENAMED = {"README.md": "index.md", NOTEBOOK: "quickstart.md"}
FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?(\))")


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    return RENAMED.get(path, path.removeprefix("docs/"))


def with_links(text: str, path: str, there: Callable[[str], str | None]) -> str:
    """Markdown with its relative links replaced, but for those in blocks of code.

    Args:
        text: of the page.
        path: of the page in the repository.
        there: the link to a path in the repository, or None to leave it as it is.
    """

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        link = there(target)
        return match[0] if link is None else f"{match[1]}{link}{match[3] or ''}{match[4]}"

    pieces, end = [], 0
    for block in FENCED.finditer(text):
        pieces += [LINK.sub(replaced, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*pieces, LINK.sub(replaced, text[end:])])


def linked(text: str, path: str) -> list[str]:
    """Files of the repository that a page links to."""
    found: list[str] = []
    with_links(text, path, found.append)
    return [target for target in found if (ROOT / target).is_file()]


def notebook_page(content: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their names."""
    parts, pictures = [], {}
    for cell in json.loads(content)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                name = f"quickstart-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell draws]({name})")
            elif text.strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside `docs/`: the pages of the navigation and all that is linked to."""
    at = {site_path(path): path for path in RENAMED}
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += [at.get(page, page) for page in _leaves(config.nav)]
    done = set()
    while waiting:
        path = waiting.pop()
        if path in done or not (ROOT / path).is_file():
            continue
        done.add(path)
        if path == NOTEBOOK:
            text, pictures = notebook_page((ROOT / path).read_text(encoding="utf-8"))
            for name, content in pictures.items():
                files.append(File.generated(config, name, content=content))
            files.append(File.generated(config, site_path(path), content=text))
            waiting += linked(text, path)
        elif files.get_file_from_path(site_path(path)) is None:
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += linked((ROOT / path).read_text(encoding="utf-8"), path)
    config.extra["repository_paths"] = {site_path(path): path for path in done}
    return files


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ()
    return [leaf for item in inner for leaf in _leaves(item)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead every link to where its file is on the site."""
    here = page.file.src_uri
    path = config.extra["repository_paths"].get(here, f"docs/{here}")

    def there(target: str) -> str | None:
        if files.get_file_from_path(site_path(target)) is None:
            return None
        return posixpath.relpath(site_path(target), posixpath.dirname(here) or ".")

    return with_links(markdown, path, there)
