"""The main job: `cnnviz demo`, from nothing to a run, a page in a browser and a number."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sinks.offline_run import read_offline_run

from lightning_cnnviz.cli import main

EPOCHS = 5


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo wrote, and what it printed; its home is empty and there is nobody to answer."""
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("demo") / "out"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, "-c", "from lightning_cnnviz.cli import main; raise SystemExit(main())"]
    done = subprocess.run(
        [*command, "demo", "--out", str(out), "--epochs", str(EPOCHS)],
        env={**kept, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "has failed" not in done.stderr
    assert "has shown nothing" not in done.stderr
    return out, done.stdout


def test_ends_by_saying_what_there_is(demo: tuple[Path, str]) -> None:
    out, printed = demo
    accuracy = re.search(r"Test accuracy: ([\d.]+)%", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 80
    page = re.search(r"Page.*: (.*index\.html)", printed)
    assert page is not None
    assert Path(page[1]).exists()
    run = re.search(r"wandb sync (.*)", printed)
    assert run is not None
    assert list(Path(run[1]).glob("run-*.wandb"))
    assert f"wandb leet {run[1]}" in printed
    assert out in Path(run[1]).parents


def test_the_run_has_every_epoch(demo: tuple[Path, str]) -> None:
    out, _ = demo
    (run,) = (out / "wandb").glob("offline-run-*")
    rows = [row for row in read_offline_run(run) if "top_patches/pictures" in row]
    steps = [(row["cnnviz/epoch"], row["epoch"], row["trainer/global_step"]) for row in rows]
    per_epoch = 19
    assert steps[:EPOCHS] == [(epoch + 1, epoch, per_epoch * (epoch + 1) - 1) for epoch in range(EPOCHS)]


@pytest.mark.browser
def test_the_page_in_a_browser(demo: tuple[Path, str], browser_page: Any) -> None:
    out, _ = demo
    browser_page.goto((out / "page" / "index.html").as_uri())
    assert browser_page.locator("h1").inner_text() == "DemoNet"
    browser_page.get_by_test_id("layer-conv3").click()
    browser_page.get_by_test_id("feature-15").scroll_into_view_if_needed()
    browser_page.get_by_test_id("feature-2").click()
    for place in range(9):
        image = browser_page.get_by_test_id(f"patch-{place}").locator("img").first
        assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth > 0; }")
    assert browser_page.get_by_test_id("projection-0").is_visible()
    before = browser_page.locator("#main").inner_text()
    slider = browser_page.get_by_test_id("epoch-slider")
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    browser_page.get_by_text(f"epoch {EPOCHS - 2} · step").first.wait_for()
    browser_page.wait_for_timeout(300)
    assert browser_page.locator("#main").inner_text() != before


def test_help_needs_no_torch() -> None:
    code = "import sys; from lightning_cnnviz.cli import main\ntry: main(['demo', '--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--out DIR" in done.stdout
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["demo", "--epochs", "0"], "not a whole number of at least 1"),
        (["demo", "--epochs", "many"], "not a whole number of at least 1"),
        (["demo", "--out", __file__], "is a file; give a folder"),
        ([], "COMMAND"),
        (["demonstrate"], "demo"),
    ],
)
def test_wrong_arguments(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert match in capsys.readouterr().err
