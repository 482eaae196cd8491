"""Give every page as plain Markdown too, with `llms.txt` as the list of them: a hook of MkDocs.

`llms.txt` is as https://llmstxt.org has it: name, one sentence, and each section's pages with what
they say first. A page is beside its HTML under the name of its source, and reference pages have
the docstrings in place of the directives that fetch them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

DIRECTIVE = re.compile(r"^::: (\S+)\n((?:    .*\n?|\n(?=    ))*)", re.MULTILINE)

_texts: dict[str, str] = {}
_state: dict[str, Navigation] = {}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> None:
    """Keep the page's text; hooks that replace links come before this one."""
    handler = config.plugins["mkdocstrings"].get_handler("python")

    def described(match: re.Match[str]) -> str:
        options = (yaml.safe_load(match[2]) or {}).get("options", {})
        thing = handler.collect(match[1], handler.get_options(options))
        return "\n\n".join(_entries(thing, options.get("members"))) + "\n"

    _texts[page.file.src_uri] = DIRECTIVE.sub(described, markdown)


def _entries(thing: Any, members: Collection[str] | None = None) -> list[str]:
    """What an object and its members say of themselves; the public ones if none is named."""
    lines = []
    if thing.docstring and not (thing.is_module and members):
        lines = [f"### `{_title(thing)}`", thing.docstring.value]
    if thing.is_module or thing.is_class:
        for name, member in thing.members.items():
            chosen = not name.startswith("_") if members is None else name in members
            if chosen and not member.is_alias:
                lines += _entries(member)
    return lines


def _title(thing: Any) -> str:
    """The path of an object, with its parameters or its type and default."""
    if thing.is_attribute:
        kind = f": {thing.annotation}" if thing.annotation else ""
        return thing.path + kind + (f" = {thing.value}" if thing.value else "")
    if thing.is_function or (thing.is_class and thing.parameters):
        return f"{thing.parent.path}.{thing.signature()}"
    return thing.path


def on_nav(nav: Navigation, **_: Any) -> None:
    """Keep the order of the pages."""
    _state["nav"] = nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write the pages and `llms.txt`."""
    site = Path(config.site_dir)
    for uri, text in _texts.items():
        (site / uri).parent.mkdir(parents=True, exist_ok=True)
        (site / uri).write_text(text, encoding="utf-8")
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    loose = [item for item in _state["nav"].items if isinstance(item, Page)]
    sections = [item for item in _state["nav"].items if isinstance(item, Section)]
    for title, items in [("Start", loose), *((s.title, s.children) for s in sections)]:
        lines += [f"## {title}", ""]
        lines += [_line(page) for page in items if isinstance(page, Page)]
        lines.append("")
    (site / "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def _line(page: Page) -> str:
    first = _first_sentence(_texts[page.file.src_uri])
    return f"- [{page.title}]({page.file.src_uri})" + (f": {first}" if first else "")


def _first_sentence(text: str) -> str:
    """The first sentence of the first paragraph, without its links and marks."""
    for paragraph in re.split(r"\n\s*\n", text):
        if not re.match(r"\s*(```|[#|!~<>:]|[-*] |\d+\. )", paragraph):
            words = " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", paragraph).split())
            return re.split(r"(?<=[.!?])\s|:$", words.replace("**", ""))[0]
    return ""
