from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sinks.harness import Harness, full_disk

import lightning_cnnviz.sinks.page as page_module
from lightning_cnnviz.report import Curve, Gallery, Item, Picture, Report, Row, Scalar, Series, Step, Table, Tile
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.page import PageSink

NOT_MEASURED = "\u2013"
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'&\u2028\u2029"


def pixels(seed: int, side: int = 12) -> torch.Tensor:
    return torch.randint(256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def gallery(name: str = "features.0", *, features: int = 3, tiles: int = 9, seed: int = 0, side: int = 12) -> Gallery:
    rows = tuple(
        Row(
            f"channel {feature}",
            tuple(
                Tile(pixels(seed + feature * 100 + k, side), f"class {k}", {"activation": 9.87654 - k, "image": k})
                for k in range(tiles)
            ),
            {"max": 9.87654 + feature},
        )
        for feature in range(features)
    )
    return Gallery(name, rows, caption=f"About {name}.", numbers={"channels": 64})


def report(*items: Item, view: str = "top_patches", notes: Sequence[str] = ("A note.",)) -> Report:
    return Report(view, title=f"Title of {view}", items=items, notes=tuple(notes))


def embedded(sink: PageSink) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What the page carries: its views and its pictures."""
    html = sink.path.read_text(encoding="utf-8")
    views, pictures = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(views), json.loads(pictures)


def keys(sink: Sink, loggers: Sequence[Any]) -> list[str]:
    assert isinstance(sink, PageSink)
    found = []
    for view in embedded(sink)[0]:
        for item in (item for look in view["looks"] for item in look["items"]):
            stem, slash, name = view["view"].partition("/")
            found.append(f"{stem}{'_stats' if item['kind'] == 'Scalar' else ''}{slash}{name}/{item['name']}")
    return found


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: Sequence[Any]) -> None:
    patch.setattr(page_module.os, "replace", full_disk)


HARNESS = Harness(make=PageSink, loggers=list, keys=keys, breaks=breaks)


def steps(sink: PageSink, view: int = 0) -> list[int]:
    return [look["step"] for look in embedded(sink)[0][view]["looks"]]


# --- the file ---


def test_open_fixes_the_directory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no directory yet"):
        _ = PageSink().path
    with pytest.raises(RuntimeError, match="no directory yet"):
        PageSink().write(report(), Step(epoch=0, global_step=0))
    sink = PageSink()
    sink.open([], tmp_path)
    assert sink.path == tmp_path / "cnnviz" / "index.html"
    given = PageSink(tmp_path / "mine")
    given.open([], tmp_path / "logs")
    assert given.path == tmp_path / "mine" / "index.html"


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_refuses_a_size_of_nothing(value: float) -> None:
    with pytest.raises(ValueError, match="max_megabytes must be above 0"):
        PageSink("somewhere", max_megabytes=value)


def test_opening_again_keeps_what_is_there_unless_the_place_changes(tmp_path: Path) -> None:
    sink = PageSink()
    sink.open([], tmp_path / "one")
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    sink.open([], tmp_path / "one")
    sink.write(report(gallery()), Step(epoch=2, global_step=20))
    assert steps(sink) == [10, 20]
    sink.open([], tmp_path / "two")
    sink.write(report(gallery()), Step(epoch=3, global_step=30))
    assert steps(sink) == [30]


def test_the_old_page_stands_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = sink.path.read_bytes()
    seen = []

    def watch(source: Path, target: Path) -> None:
        seen.append((Path(source).parent, Path(source).read_text(encoding="utf-8")[-8:], Path(target).read_bytes()))
        real(source, target)

    real = os.replace
    monkeypatch.setattr(page_module.os, "replace", watch)
    sink.write(report(gallery()), Step(epoch=2, global_step=20))
    assert seen == [(tmp_path, "</html>\n", before)]
    assert sink.path.read_bytes() != before
    assert os.listdir(tmp_path) == ["index.html"]


def test_a_path_that_cannot_be_raises_and_the_report_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sink = PageSink(tmp_path / "file" / "page")
    with pytest.raises(OSError, match="file"):
        sink.write(report(gallery()), Step(epoch=1, global_step=10))
    (tmp_path / "file").unlink()
    sink.write(report(gallery()), Step(epoch=2, global_step=20))
    assert steps(sink) == [10, 20]


def test_a_full_disk_raises_and_leaves_the_old_page_alone(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = sink.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            sink.write(report(gallery()), Step(epoch=2, global_step=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["index.html"]
    assert sink.path.read_bytes() == before


def test_the_page_has_nothing_inline_that_its_policy_forbids(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(), Picture("p", pixels(1), caption=HOSTILE)), Step(epoch=1, global_step=10))
    html = sink.path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]
    markup = re.sub(r"(<script\b[^>]*>|<style>).*?(</script>|</style>)", r"\1\2", html, flags=re.DOTALL)
    assert not re.search(r"\s(style|on\w+)\s*=|\bhttps?:|\bsrc=|javascript:", markup)
    assert html.count("<script") == html.count("</script>") == 3


# --- what it keeps ---


def test_a_picture_is_stored_and_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    real = page_module.encode_tile
    monkeypatch.setattr(page_module, "encode_tile", lambda image: (encoded.append(1), real(image))[1])
    sink = PageSink(tmp_path)
    for epoch in range(4):
        sink.write(report(gallery(features=2, tiles=5)), Step(epoch=epoch, global_step=epoch * 10))
    assert len(encoded) == 10
    views, pictures = embedded(sink)
    assert len(pictures) == 10
    shown = {tile[0] for look in views[0]["looks"] for row in look["items"][0]["rows"] for tile in row["tiles"]}
    assert shown == set(pictures)


def test_pictures_of_one_content_and_two_shapes_are_two(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    flat = torch.zeros(3, 2, 8, dtype=torch.uint8)
    sink.write(report(Picture("wide", flat), Picture("tall", flat.reshape(3, 8, 2))), Step(epoch=0, global_step=0))
    assert len(embedded(sink)[1]) == 2


def test_the_same_step_again_replaces_item_by_item(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery("a", seed=1), Scalar("a/dead", 3.0), notes=["One."]), Step(epoch=1, global_step=10))
    sink.write(
        report(gallery("b", seed=2), Scalar("a/dead", 5.0), notes=["One.", "Two."]), Step(epoch=1, global_step=10)
    )
    views, pictures = embedded(sink)
    (look,) = views[0]["looks"]
    assert [(item["kind"], item["name"]) for item in look["items"]] == [
        ("Gallery", "a"),
        ("Scalar", "a/dead"),
        ("Gallery", "b"),
    ]
    assert look["items"][1]["value"] == 5.0
    assert look["notes"] == ["One.", "Two."]
    sink.write(report(gallery("a", seed=3)), Step(epoch=1, global_step=10))
    assert len(embedded(sink)[1]) == len(pictures), "pictures that nothing shows any more must go"


def test_views_and_steps_are_kept_apart_and_in_order(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    for view, step in [
        ("a", Step(epoch=2, global_step=20)),
        ("b", Step(epoch=1, global_step=10)),
        ("a", Step(epoch=1, global_step=10)),
        ("a", Step(epoch=2, global_step=20, stage="test")),
    ]:
        sink.write(report(gallery(), view=view), step)
    views, _ = embedded(sink)
    assert [view["view"] for view in views] == ["a", "b"]
    looks = [(look["epoch"], look["step"], look["stage"]) for look in views[0]["looks"]]
    assert looks == [(1, 10, "fit"), (2, 20, "fit"), (2, 20, "test")]


def test_a_page_too_large_loses_inner_looks_and_says_so(tmp_path: Path) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.1)
    for number in range(12):
        sink.write(report(gallery(seed=number * 10_000, features=2)), Step(epoch=number, global_step=number * 10))
        kept = steps(sink)
        assert kept[0] == 0
        assert kept[-1] == number * 10
        assert embedded(sink)[0][0]["left_out"] == number + 1 - len(kept)
        assert sum(map(len, embedded(sink)[1].values())) <= 100_000
    assert 2 < len(steps(sink)) < 12


def test_a_look_larger_than_the_page_may_be_is_still_shown(tmp_path: Path) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.001)
    for number in range(3):
        sink.write(report(gallery(seed=number * 10_000)), Step(epoch=number, global_step=number * 10))
    assert steps(sink) == [20]
    assert len(embedded(sink)[1]) == 27
    sink.write(report(gallery(seed=5)), Step(epoch=0, global_step=0))
    assert 0 in steps(sink), "what was just written must show"
    assert embedded(sink)[0][0]["left_out"] == 1


def test_an_item_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = embedded(sink)
    with monkeypatch.context() as patch:

        def broken(curve: Curve) -> str:
            raise ArithmeticError("no chart")

        patch.setattr(page_module, "curve_svg", broken)
        bad = report(gallery(seed=77), Curve("c", (), x_label="x", y_label="y"))
        with pytest.raises(ArithmeticError, match="no chart"):
            sink.write(bad, Step(epoch=2, global_step=20))
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    assert embedded(sink) == before


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    numbers = {"nan": math.nan, "inf": -math.inf, "numpy": np.float32(0.5), "int": 7, "text": "NaN"}
    row = Row("r", (Tile(pixels(0), "t", numbers),), {"7": 1, "3": 2})
    items = (Gallery("g", (row,)), Scalar("s", math.nan), Table("t", ("a", "b"), ((math.inf, None),)))
    sink.write(report(*items), Step(epoch=0, global_step=0))
    shown = embedded(sink)[0][0]["looks"][0]["items"]
    assert shown[0]["rows"][0]["tiles"][0][2] == [
        ["nan", None],
        ["inf", None],
        ["numpy", 0.5],
        ["int", 7],
        ["text", "NaN"],
    ]
    assert shown[0]["rows"][0]["numbers"] == [["7", 1], ["3", 2]]
    assert shown[1]["value"] is None
    assert shown[2]["rows"] == [[None, None]]


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(
        report(Table("t", ("n", "tile"), tuple((n, Tile(pixels(n))) for n in range(510)))), Step(epoch=0, global_step=0)
    )
    views, pictures = embedded(sink)
    table = views[0]["looks"][0]["items"][0]
    assert (len(table["rows"]), table["total"], len(pictures)) == (500, 510, 500)


# --- in a browser ---


def sources(page: Any, selector: str) -> list[str]:
    return page.locator(f"{selector} img").evaluate_all("images => images.map((image) => image.src)")


def feature_list(page: Any) -> list[str]:
    return page.locator(".feature:visible strong").all_inner_texts()


@pytest.fixture
def written(tmp_path: Path) -> PageSink:
    """Two layers, three looks; from look to look all tiles change."""
    sink = PageSink(tmp_path / "a folder with spaces & #")
    for look in range(3):
        seed = look * 10_000
        items = (
            gallery("features.0", seed=seed),
            gallery("features.3", seed=seed + 5_000, side=40),
            Scalar("features.0/dead_features", [math.nan, 7.0, 0.123456][look]),
        )
        sink.write(report(*items, notes=["Normalization undone."]), Step(epoch=look, global_step=look * 10))
    return sink


@pytest.mark.browser
def test_opens_from_the_disk_at_the_newest_look(written: PageSink, browser_page: Any) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    assert page.locator("h1").inner_text() == "Title of top_patches"
    assert page.locator("#notes").inner_text() == "Normalization undone."
    assert page.locator("#looks output").inner_text() == "epoch 2 · step 20"
    assert feature_list(page) == ["channel 0", "channel 1", "channel 2"]
    layer = page.get_by_test_id("layer-features.0")
    assert layer.get_attribute("aria-current") == "true"
    assert re.sub(r"\s+", " ", layer.inner_text()) == "features.0 channels 64 dead features 0.1235"
    widths = page.locator(".feature img").evaluate_all("images => images.map((image) => image.naturalWidth)")
    assert widths == [12] * 27


@pytest.mark.browser
def test_a_feature_opens_with_its_nine_patches(written: PageSink, browser_page: Any) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    page.get_by_test_id("layer-features.3").click()
    page.get_by_test_id("feature-1").click()
    dialog = page.get_by_test_id("dialog")
    assert dialog.locator("h2").inner_text() == "features.3 · channel 1"
    for k in range(9):
        patch = dialog.get_by_test_id(f"patch-{k}")
        image = patch.locator("img").evaluate("i => [i.naturalWidth, i.width, getComputedStyle(i).imageRendering]")
        assert image == [40, 160, "pixelated"]
        text = re.sub(r"\s+", " ", patch.inner_text())
        assert text == f"class {k} activation {float(f'{9.87654 - k:.4g}'):g} image {k}"
    page.get_by_test_id("next-feature").click()
    assert dialog.locator("h2").inner_text() == "features.3 · channel 2"
    assert page.get_by_test_id("next-feature").is_disabled()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert dialog.locator("h2").inner_text() == "features.3 · channel 0"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.wait_for_selector("[data-testid=feature-0]:focus")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.get_by_test_id("close").click()
    assert not dialog.is_visible()


@pytest.mark.browser
def test_tiles_stand_in_the_columns_that_the_report_says(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.open([], tmp_path)
    beside = Gallery("beside", gallery(tiles=18).rows, caption="Projections beside patches.", columns=6)
    sink.write(report(beside, gallery("square", tiles=18)), Step(epoch=1, global_step=10))
    browser_page.goto(sink.path.as_uri())

    def columns(images: str) -> int:
        lefts = browser_page.eval_on_selector_all(
            images, "is => is.map(i => Math.round(i.getBoundingClientRect().left))"
        )
        return len(set(lefts))

    assert columns("[data-testid=feature-0] img") == 6
    browser_page.get_by_test_id("feature-0").click()
    assert columns("#patches img") == 6
    browser_page.keyboard.press("Escape")
    browser_page.get_by_test_id("layer-square").click()
    assert columns("[data-testid=feature-0] img") == 5


@pytest.mark.browser
def test_the_slider_moves_through_the_looks(written: PageSink, browser_page: Any) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    label = page.locator("#looks output")
    newest = sources(page, "[data-testid=feature-0]")
    page.get_by_test_id("epoch-slider").fill("0")
    assert label.inner_text() == "epoch 0 · step 0"
    assert set(sources(page, "[data-testid=feature-0]")).isdisjoint(newest)
    assert page.get_by_test_id("layer-features.0").locator(".stat b").inner_text() == NOT_MEASURED
    page.get_by_test_id("epoch-slider").press("ArrowRight")
    assert label.inner_text() == "epoch 1 · step 10"
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    assert sources(page, "[data-testid=feature-0]") == newest

    page.get_by_test_id("feature-0").click()
    assert sources(page, "#patches") == newest
    page.get_by_test_id("dialog-epoch-slider").fill("1")
    assert set(sources(page, "#patches")).isdisjoint(newest)
    assert label.inner_text() == "epoch 1 · step 10"
    page.get_by_test_id("strip-2").click()
    assert sources(page, "#patches") == newest


@pytest.mark.browser
def test_a_reload_keeps_the_place_and_the_newest_moves_on(written: PageSink, browser_page: Any) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    page.get_by_test_id("layer-features.3").click()
    written.write(report(gallery("features.3", seed=1)), Step(epoch=3, global_step=30))
    page.reload()
    assert page.locator("#looks output").inner_text() == "epoch 3 · step 30"
    assert page.locator("main h2").inner_text() == "features.3"
    page.get_by_test_id("epoch-slider").fill("1")
    page.get_by_test_id("feature-2").click()
    written.write(report(gallery("features.3", seed=2)), Step(epoch=4, global_step=40))
    page.reload()
    assert page.locator("#dialog-looks output").inner_text() == "epoch 1 · step 10"
    assert page.locator("#dialog-title").inner_text() == "features.3 · channel 2"
    page.goto(f"{written.path.as_uri()}#view=none&layer=gone&look=9-9-fit")
    page.reload()
    assert page.locator("#looks output").inner_text() == "epoch 4 · step 40"


@pytest.mark.browser
def test_features_can_be_filtered(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(
        report(gallery(features=30, tiles=2), gallery("few", features=24, tiles=1)), Step(epoch=1, global_step=10)
    )
    page = browser_page
    page.goto(sink.path.as_uri())
    page.get_by_test_id("filter").fill("CHANNEL 2")
    assert feature_list(page) == ["channel 2", *(f"channel {n}" for n in range(20, 30))]
    assert page.get_by_test_id("count").inner_text() == "11 of 30 features"
    page.get_by_test_id("layer-few").click()
    assert page.get_by_test_id("filter").count() == 0
    assert len(feature_list(page)) == 24


@pytest.mark.browser
def test_other_items_have_their_own_place(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    curve = Curve(
        "rotation",
        (Series("conv", x=(0.0, 90.0), y=(0.0, 1.0), low=(0.0, 0.9), high=(0.1, 1.0)),),
        x_label="degrees",
        y_label="distance",
    )
    table = Table("layers", ("layer_name", "tile", "share"), (("a", Tile(pixels(3)), 0.123456), ("b", None, math.nan)))
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    sink.write(
        report(Picture("map", pixels(1, 20), caption="A map."), curve, table, Scalar("mean", 2.0), view="other"),
        Step(epoch=1, global_step=10),
    )
    page = browser_page
    page.goto(sink.path.as_uri())
    page.get_by_test_id("view-other").click()
    assert not page.locator("#layers").is_visible()
    sizes = page.locator("main img").evaluate_all(
        "images => images.map((image) => [image.naturalWidth > 0, image.alt])"
    )
    assert sizes == [[True, "map: A map."], [True, "rotation: "], [True, ""]]
    assert page.locator("th").all_inner_texts() == ["layer name", "tile", "share"]
    assert page.locator("td").all_inner_texts() == ["a", "", "0.1235", "b", NOT_MEASURED, NOT_MEASURED]
    assert re.sub(r"\s+", " ", page.locator(".stats").inner_text()) == "mean 2"


@pytest.mark.browser
def test_one_feature_seen_by_two_views_is_shown_side_by_side(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    sink.write(report(gallery(seed=500, tiles=4), view="deconvnet"), Step(epoch=1, global_step=10))
    page = browser_page
    page.goto(sink.path.as_uri())
    page.get_by_test_id("feature-1").click()
    assert len(sources(page, "[data-testid=same-deconvnet]")) == 4


@pytest.mark.browser
def test_features_of_one_caption_stay_apart(tmp_path: Path, browser_page: Any) -> None:
    rows = tuple(Row("", (Tile(pixels(n), f"tile {n}"),)) for n in range(3))
    sink = PageSink(tmp_path)
    sink.write(report(Gallery("kernels", rows)), Step(epoch=1, global_step=10))
    page = browser_page
    page.goto(sink.path.as_uri())
    page.get_by_test_id("feature-1").click()
    assert page.locator("#dialog-title").inner_text() == "kernels · #2"
    assert page.get_by_test_id("patch-0").inner_text() == "tile 1"


@pytest.mark.browser
@pytest.mark.parametrize(
    ("items", "text"),
    [
        ((), "This look has nothing to show."),
        ((Gallery("g", ()),), "This gallery has no rows at this look."),
        ((Table("t", ("a",), ()),), "This table has no rows."),
        ((Gallery("g", (Row("dead", ()),)),), "dead"),
    ],
)
def test_nothing_to_show_is_said(items: tuple[Item, ...], text: str, tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(*items), Step(epoch=0, global_step=0))
    browser_page.goto(sink.path.as_uri())
    assert text in browser_page.locator("main").inner_text()


@pytest.mark.browser
def test_two_monitors_of_one_view_are_two_views(tmp_path: Path, browser_page: Any) -> None:
    sink, page = PageSink(tmp_path), browser_page
    for name, caption in (("", "of nobody"), ("teacher", "of the teacher"), ("student", "of the student")):
        items = (Gallery("conv", (Row(caption, (Tile(pixels(1)),)),)),)
        sink.write(Report("top_patches", title="Top-9", items=items, name=name), Step(epoch=1, global_step=10))
    page.goto(sink.path.as_uri())
    labels = page.locator("#views button").all_inner_texts()
    assert labels == ["top patches", "top patches · teacher", "top patches · student"]
    page.get_by_test_id("view-top_patches/teacher").click()
    for _ in range(2):
        assert page.locator("h1").inner_text() == "Top-9 · teacher"
        assert page.get_by_test_id("feature-0").inner_text() == "of the teacher"
        page.reload()


@pytest.mark.browser
def test_hostile_text_is_only_text(tmp_path: Path, browser_page: Any) -> None:
    evil = Gallery(
        HOSTILE, (Row(HOSTILE, (Tile(pixels(0), HOSTILE, {HOSTILE: HOSTILE}),), {HOSTILE: 1.5}),), caption=HOSTILE
    )
    curve = Curve(
        HOSTILE, (Series(HOSTILE, x=(0.0, 1.0), y=(0.0, 1.0)),), x_label=HOSTILE, y_label=HOSTILE, caption=HOSTILE
    )
    table = Table(HOSTILE, (HOSTILE,), ((HOSTILE,), ("\ud800",)))
    sink = PageSink(tmp_path)
    items = (evil, Picture(HOSTILE, pixels(1), caption=HOSTILE), curve, table, Scalar(f"{HOSTILE}/{HOSTILE}", 1.0))
    for number in range(2):
        sink.write(
            Report(HOSTILE, title=HOSTILE, items=items, notes=(HOSTILE,)),
            Step(epoch=1, global_step=number, stage=HOSTILE),
        )
        sink.write(report(gallery()), Step(epoch=1, global_step=number))
    page = browser_page
    page.goto(sink.path.as_uri())
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator("main h2").text_content() == HOSTILE
    page.get_by_test_id("feature-0").click()
    assert page.get_by_test_id("patch-0").locator("strong").text_content() == HOSTILE
    page.get_by_test_id("dialog-epoch-slider").fill("0")
    page.reload()
    assert page.locator("#dialog-title").text_content() == f"{HOSTILE} · {HOSTILE}"
    assert page.locator("#looks output").text_content() == f"epoch 1 · step 0 · {HOSTILE}"
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 3
    assert page.locator("[onerror]").count() == 0


@pytest.mark.browser
def test_the_policy_holds_and_the_watch_can_fail(
    written: PageSink, browser_page: Any, page_problems: list[str]
) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    assert page_problems == []
    page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.hacked = 1";
      document.body.append(script);
      document.body.setAttribute("style", "color: red");
      document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/a.png" }));
    }""")
    assert page.evaluate("window.hacked") is None
    page.wait_for_function("document.images[document.images.length - 1].complete")
    for word in ("script-src", "style-src", "img-src"):
        assert any(word in problem for problem in page_problems), word
    page_problems.clear()
    page.evaluate("setTimeout(() => { throw new Error('provoked') })")
    page.wait_for_timeout(50)
    assert page_problems == ["error: provoked"]
    page_problems.clear()


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_window(written: PageSink, width: int, browser_page: Any) -> None:
    page = browser_page
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(written.path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_test_id("feature-0").click()
    assert page.evaluate("document.getElementById('dialog').scrollWidth") <= width
