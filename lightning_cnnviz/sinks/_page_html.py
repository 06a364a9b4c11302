"""The page itself, an HTML file: the same whatever it shows, beside its looks, or with some of them in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightning_cnnviz.render.how_to_read import HOW_TO_READ
from lightning_cnnviz.sinks._page_folder import PageFolder
from lightning_cnnviz.sinks._page_items import to_json

__all__ = ["FORMAT", "bundled_page", "newest_looks_page", "page_html"]

FORMAT = 3
"""Of the page's folder; it rises where an older page could not show what a newer sink writes."""

_SCRIPTS = tuple(
    f"page{part}.js"
    for part in ("_data", "_moments", "_dom", "_charts", "_network", "_views", "_unit", "_search", "_compare", "")
)


def bundled_page(folder: Path) -> str:
    """Return a page as one self-contained file, with everything in it that lies beside the page in its folder.

    Args:
        folder: That of a page.

    Raises:
        OSError: There is none, or a file cannot be read.
    """
    parts = ("lists", "looks", "parts", "pictures")
    paths = [path for part in parts for path in sorted((folder / part).glob("*.js"))]
    return _embedded(folder, (folder / "looks.js").read_text(encoding="utf-8"), paths)


def newest_looks_page(folder: Path, most_bytes: float) -> tuple[str, int]:
    """Return a page's newest look of each series as one self-contained file, and how many bytes its looks have.

    Args:
        folder: That of a page.
        most_bytes: Of looks with more bytes than these, "" stands for the file; nothing is read then.

    Raises:
        OSError: A file cannot be read.
    """
    page = PageFolder(folder)
    page.scan()
    heads, listed = page.newest()
    paths = sorted({path for head in heads for path in page.files_of(head.chunk)})
    size = sum(path.stat().st_size for path in paths)
    if size > most_bytes or not heads:
        return "", size
    return _embedded(folder, listed, paths), size


def _embedded(folder: Path, looks: str, paths: Sequence[Path]) -> str:
    """A page with a list of looks, and files of its folder, in it."""
    names = ["looks.js", *(path.relative_to(folder).as_posix() for path in paths)]
    texts = (path.read_text(encoding="utf-8") for path in paths)
    return page_html(f"{looks}{''.join(texts)}embedded({to_json(names)});\n")


@cache
def page_html(content: str = "") -> str:
    """The page itself, which is the same whatever it shows; or with looks in it."""
    loader = PackageLoader("lightning_cnnviz", "sinks")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    style, *scripts = (loader.get_source(environment, name)[0] for name in ("page.css", *_SCRIPTS))
    template = environment.get_template("page.html.jinja")
    help_texts = to_json({view: asdict(text) for view, text in HOW_TO_READ.items()})
    scripts.insert(0, f'"use strict";\nconst HELP = {help_texts};')
    scripts.insert(2, content)  # after what takes it, before what shows it
    return template.render(style=style, script="\n".join(scripts), format=FORMAT, loads=not content)
