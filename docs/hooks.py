"""Build the site from the repository: root files become pages, links out of docs/ go to the source.

On GitHub, every link works as it is written. In the site, a link to a page stays in the site, and a
link to any other file of the repository leads to `extra.repository` of mkdocs.yml.
"""

import logging
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

logger = logging.getLogger("mkdocs.hooks")  # a warning ends a strict build

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "patches/README.md": "ledger.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""File of the repository -> the page that shows it."""

LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(?=[)#])")
"""The path of an inline link or image; not a URL, and not an anchor alone."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that show files from outside docs/."""
    for source, uri in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    sources = {shown: source for source, shown in PAGES.items()}
    folder = Path(sources.get(uri, f"docs/{uri}")).parent

    def rewritten(match: re.Match) -> str:
        path = os.path.normpath(folder / match[1])
        shown = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(shown) is not None and (path in PAGES or shown != path):
            return os.path.relpath(shown, Path(uri).parent)
        if not (ROOT / path).exists():
            logger.warning("%s links to %s, which does not exist", uri, path)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{path}"

    return LINK.sub(rewritten, markdown)
