"""The page of the newest looks is one file, of a known size, and can be used in a frame of somebody else's page."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
from sinks.test_page import gallery

from lightning_cnnviz.report import Report, Scalar, Step
from lightning_cnnviz.sinks._page_html import newest_looks_page
from lightning_cnnviz.sinks.page import PageSink


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page of two views, of which one was looked at three times."""
    page = PageSink(tmp_path / "page")
    for epoch in (1, 2, 3):
        items = (gallery(seed=epoch), gallery("features.3", seed=epoch), Scalar("accuracy", epoch / 10))
        page.write(Report("top_patches", title="Patches", items=items), Step(epoch=epoch, global_step=epoch, run="a"))
    page.write(Report("filters", title="Filters", items=(gallery(seed=9),)), Step(epoch=1, global_step=1, run="a"))
    return page.path.parent


def test_it_has_the_newest_look_of_each_series_alone(folder: Path) -> None:
    text, size = newest_looks_page(folder, 1e9)
    looks = sorted((folder / "looks").glob("*.js"), key=lambda path: path.read_text())
    there = [path for path in looks if f'cnnviz.look("{path.stem}"' in text]
    assert len(there) == 2
    assert ['"epoch":3' in text, '"epoch":2' in text] == [True, False]
    assert 0 < size < len(text)


def test_nothing_is_read_of_what_is_too_large(folder: Path) -> None:
    _, size = newest_looks_page(folder, 1e9)
    assert newest_looks_page(folder, size - 1) == ("", size)
    assert newest_looks_page(folder, size)[0]
    assert newest_looks_page(folder / "empty", 1e9) == ("", 0)


@pytest.mark.browser
def test_its_links_work_in_a_frame(folder: Path, tmp_path: Path, browser_page: Any) -> None:
    text, _ = newest_looks_page(folder, 1e9)
    frame = f'<iframe sandbox="allow-scripts" width="1200" height="700" srcdoc="{html.escape(text)}"></iframe>'
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!doctype html><title>Somebody's page</title>{frame}")
    browser_page.goto(outer.as_uri())
    inside = browser_page.frame_locator("iframe")
    inside.locator('a[href^="#/features.0"]').first.click()
    inside.get_by_role("heading", name="features.0").first.wait_for()
    inside.get_by_test_id("search").fill("features.3")
    inside.locator('a[href^="#/features.3"]').first.wait_for()
    assert browser_page.url == outer.as_uri()
