"""For all tests: how hypothesis runs, and a browser that tells of everything it complains about or asks for."""

from __future__ import annotations

import os

# Before torch is loaded: processes that share the cores get in each other's way with threads of their own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Pictures are drawn where a test can wait for them; the tests of drawing beside training say otherwise.
os.environ.setdefault("CNNVIZ_DRAWING", "inline")

import shutil
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("cnnviz", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cnnviz")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Whatever a test draws, it draws the same in any order of tests."""
    torch.manual_seed(0)


_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test printed be sent from one process to another also where it names files that are not UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; its test is skipped where there is none, or fails where one is needed."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        if os.environ.get("CNNVIZ_NEEDS_BROWSER"):
            pytest.fail("Chromium is not installed")
        pytest.skip("Chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page_problems() -> list[str]:
    """What went wrong in `browser_page` so far; clear it where a test provokes it on purpose."""
    return []


@pytest.fixture
def browser_page(chromium: Any, page_problems: list[str]) -> Iterator[Any]:
    """A fresh page; the test fails at its end if there was an error in it, or a request that left the page's folder."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(20_000)

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            page_problems.append(f"console: {message.text}")

    def on_request(request: Any) -> None:
        folder = request.frame.url.partition("#")[0].rpartition("/")[0]
        inside = folder.startswith("file://") and request.url.startswith(f"{folder}/") and "/.." not in request.url
        if not inside and not (request.is_navigation_request() and request.url.startswith("file://")):
            page_problems.append(f"request: {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: page_problems.append(f"error: {error}"))
    page.on("request", on_request)
    yield page
    context.close()
    assert page_problems == []
