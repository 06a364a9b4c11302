from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from sinks.harness import Harness, called, full_disk
from sinks.harness import listed as read_list

import lightning_cnnviz.sinks._page_folder as folder_module
import lightning_cnnviz.sinks._page_items as page_items
import lightning_cnnviz.sinks._page_list as list_module
import lightning_cnnviz.sinks.page as page_module
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.render.figures import figure_pixels, new_figure
from lightning_cnnviz.render.vector import figure_svg
from lightning_cnnviz.report import (
    ColorScale,
    Curve,
    Gallery,
    Histogram,
    ImageCrop,
    Item,
    LayerFacts,
    Picture,
    Report,
    Row,
    Scalar,
    Series,
    Step,
    Table,
    Tile,
)
from lightning_cnnviz.sinks._page_html import bundled_page
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
                Tile(
                    pixels(seed + feature * 100 + k, side),
                    f"tile {k}",
                    {"activation": 9.87654 - k, "dataset index": seed + k, "label": f"class {k}"},
                    shows="patch",
                    rank=k,
                )
                for k in range(tiles)
            ),
            {"max": 9.87654 + feature},
            channel=feature,
        )
        for feature in range(features)
    )
    return Gallery(name, rows, caption=f"About {name}.", numbers={"channels": 64}, layer=name)


def facts(name: str = "features.0", *, units: int = 3, classes: Sequence[str] = ("cat", "goldfish")) -> LayerFacts:
    """Of each unit a maximum, and two classes in turn."""
    driven = tuple(((classes[n % 2], 0.9 - n / (2 * units)), (classes[1 - n % 2], 0.1)) for n in range(units))
    return LayerFacts(
        layer=name,
        channels={"max activation": tuple(float(n) for n in range(units)), "dead": (0,) * (units - 1) + (1,)},
        classes=driven,
        neighbors=tuple((((n + 1) % units, 0.75),) for n in range(units)),
        told=tuple(((classes[n % 2], 3.25),) for n in range(units)),
        histograms=(*([None] * (units - 1)), Histogram(low=0.0, width=0.5, counts=(7, 0, 1))),
    )


def report(
    *items: Item, view: str = "top_patches", notes: Sequence[str] = ("A note.",), known: Sequence[LayerFacts] = ()
) -> Report:
    return Report(view, title=f"Title of {view}", items=items, notes=tuple(notes), facts=tuple(known))


def listed(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The looks of the list, by view and series; each with the names of its items."""
    return {
        view: {
            stage + f"~{run}" * (run > 1) + f"~{data}" * bool(data): looks
            for (stage, run, data), looks in series.items()
        }
        for view, series in read_list(folder).items()
    }


def stored(folder: Path) -> dict[str, list[str]]:
    """The pictures of the folder by name, each as often as it is stored."""
    pictures: dict[str, list[str]] = {}
    for file in sorted((folder / "pictures").glob("*.js")):
        _, sizes, uris = called(file)
        assert [*sizes.values()] == [len(uri) for uri in uris]
        for name, uri in zip(sizes, uris, strict=True):
            pictures.setdefault(name, []).append(uri)
    return pictures


def items_of(folder: Path, look: dict[str, Any]) -> list[dict[str, Any]]:
    """What the chunks of a look, and their parts, say."""
    items = [item for chunk in look["chunks"] for item in called(folder / "parts" / f"{chunk}.js")[1]["items"]]
    for item in items:
        if "parts" in item:
            item["rows"] = [row for part, _ in item["parts"] for row in called(folder / "parts" / f"{part}.js")[1]]
    return items


def tiles_of(item: dict[str, Any]) -> list[list[Any]]:
    """The tiles of all rows of a gallery: picture, place in it, caption, numbers, ..."""
    return [tile for row in item["rows"] for tile in row[2]]


def keys(sink: Sink, loggers: Sequence[Any]) -> list[str]:
    assert isinstance(sink, PageSink)
    found = []
    for view, series in listed(sink.path.parent).items():
        for look in (look for looks in series.values() for look in looks):
            loaded = [(item["kind"], item["name"]) for item in items_of(sink.path.parent, look)]
            assert sorted(loaded) == sorted((kind, name) for kind, name in look["names"] if kind != "Scalar")
            stem, slash, name = view.partition("/")
            found += [f"{stem}{'_stats' * (kind == 'Scalar')}{slash}{name}/{item}" for kind, item in look["names"]]
    return found


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: Sequence[Any]) -> None:
    patch.setattr(os, "replace", full_disk)


HARNESS = Harness(make=PageSink, loggers=list, keys=keys, breaks=breaks)


def steps(sink: PageSink, view: str = "top_patches", series: str = "fit") -> list[int]:
    return [look["step"] for look in listed(sink.path.parent)[view][series] if look["chunks"]]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def differing(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """The files that came, went, or changed."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


# --- the folder ---


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


def test_each_file_is_written_once_and_whole_but_for_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def watch(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent
        assert Path(source).read_bytes()[-3:] in (b");\n", b"l>\n")
        written.append(Path(target).relative_to(tmp_path).as_posix())
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", watch)
    sink = PageSink(tmp_path)
    for look in range(3):
        sink.write(report(gallery(seed=look * 10_000)), Step(epoch=look, global_step=look * 10))
    assert written.count("looks.js") == 3
    assert [name for name in written if name != "looks.js" and written.count(name) > 1] == []
    assert sorted(set(written)) == sorted(files(tmp_path))
    folders = sorted(name.rpartition("/")[0] for name in files(tmp_path))
    assert folders == ["", "", *["looks"] * 3, *["parts"] * 3, *["pictures"] * 3]
    before = files(tmp_path)
    sink.write(report(gallery()), Step(epoch=3, global_step=30))
    after = files(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["looks.js"]


def test_a_path_that_cannot_be_raises_and_the_report_can_be_written_later(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sink = PageSink(tmp_path / "file" / "page")
    with pytest.raises(OSError, match="file"):
        sink.write(report(gallery()), Step(epoch=1, global_step=10))
    (tmp_path / "file").unlink()
    sink.write(report(gallery()), Step(epoch=2, global_step=20))
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    assert steps(sink) == [10, 20]


def test_a_full_disk_raises_and_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            sink.write(report(gallery(seed=7)), Step(epoch=2, global_step=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert differing(before, files(tmp_path)) == []
    sink.write(report(gallery(seed=7)), Step(epoch=2, global_step=20))
    assert steps(sink) == [10, 20]


@pytest.mark.parametrize("place", range(5))
def test_whichever_file_fails_the_folder_is_whole(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A look's two packs, its items, its chunk, and the list.
    monkeypatch.setattr(folder_module, "_PACK_BYTES", 4_000)
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before, look, tries = files(tmp_path), report(gallery(seed=7, features=1), Scalar("s", 1.0)), []

    def fail(source: Path, target: Path) -> None:
        tries.append(target)
        if len(tries) == place + 1:
            full_disk()
        real(source, target)

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            sink.write(look, Step(epoch=2, global_step=20))
    assert differing(before, files(tmp_path)) == []
    sink.write(look, Step(epoch=2, global_step=20))
    assert steps(sink) == [10, 20]
    assert len(files(tmp_path)) == len(before) + 4
    assert [name for name, uris in stored(tmp_path).items() if len(uris) > 1] == []


def test_a_foreign_page_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "cnnviz").mkdir()
    (tmp_path / "cnnviz" / "index.html").write_text("<!doctype html><title>My own</title>")
    with pytest.raises(ValueError, match=r"index\.html was not written by lightning_cnnviz.*choose another directory"):
        PageSink().open([], tmp_path)
    with pytest.raises(ValueError, match="not written by lightning_cnnviz"):
        PageSink(tmp_path / "cnnviz").write(report(gallery()), Step(epoch=1, global_step=10))
    assert {*files(tmp_path)} == {"cnnviz/index.html"}
    assert "My own" in (tmp_path / "cnnviz" / "index.html").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        '<!doctype html><title>cnnviz</title><script type="application/json" id="data-views">\n[]</script>',
        '<!doctype html><meta name="generator" content="lightning_cnnviz page 1"><p>Of another version.',
    ],
)
def test_a_page_of_ours_is_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(text)
    sink = PageSink(tmp_path)
    sink.open([], tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    assert sink.path.read_text(encoding="utf-8").endswith("</html>\n")


def test_a_page_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<meta name="generator" content="lightning_cnnviz page 4">')
    with pytest.raises(ValueError, match=r"page of format 4, of a newer lightning_cnnviz.*knows formats up to 3"):
        PageSink(tmp_path).open([], tmp_path)


def test_the_page_has_nothing_inline_that_its_policy_forbids(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(), Picture("p", pixels(1), caption=HOSTILE)), Step(epoch=1, global_step=10))
    html = sink.path.read_text(encoding="utf-8")
    assert len(html) < 115_000
    policy, hosts = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none';")
    assert policy.endswith("require-trusted-types-for 'script'; trusted-types cnnviz")
    assert re.fullmatch(r"script-src 'sha256-[^']*' 'self' file:", hosts)
    assert "unsafe" not in policy
    markup = re.sub(r"(<script\b[^>]*>|<style>).*?(</script>|</style>)", r"\1\2", html, flags=re.DOTALL)
    assert not re.search(r"\s(style|on\w+)\s*=|\bhttps?:|\bsrc=|javascript:", markup)
    assert html.count("<script") == html.count("</script>") == 1


# --- what it keeps ---


def test_a_picture_is_stored_once(tmp_path: Path) -> None:
    for epoch in range(4):  # as in four processes
        sink = PageSink(tmp_path)
        sink.write(report(gallery(features=2, tiles=5)), Step(epoch=epoch, global_step=epoch * 10))
        sink.write(report(gallery(features=2, tiles=5), view="other"), Step(epoch=epoch, global_step=epoch * 10))
    pictures = stored(tmp_path)
    assert [len(uris) for uris in pictures.values()] == [1] * 10
    for look in listed(tmp_path)["other"]["fit"]:
        (item,) = items_of(tmp_path, look)
        assert {tile[0] for tile in tiles_of(item)} == pictures.keys()
        assert item["packs"] == [path.stem for path in (tmp_path / "pictures").iterdir()]


def test_writing_what_is_encoded_draws_and_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, step = report(gallery(features=2, tiles=5), Scalar("accuracy", 0.5)), Step(epoch=1, global_step=10)
    PageSink(tmp_path / "whole").write(shown, step)
    content = pickle.loads(pickle.dumps(PageSink.encode(shown, step)))  # as from another process
    for name in ("Pictures", "plain"):
        monkeypatch.setattr(page_module, name, None)
    PageSink(tmp_path / "parts").write_encoded(content, step)
    assert sorted(stored(tmp_path / "parts")) == sorted(stored(tmp_path / "whole"))
    bodies = []
    for part in ("whole", "parts"):
        (look,) = listed(tmp_path / part)["top_patches"]["fit"]
        items = [item | {"packs": len(item["packs"])} for item in items_of(tmp_path / part, look)]
        bodies.append(json.dumps([look["names"], look["values"], items]))
    assert len(set(bodies)) == 1


def test_a_pack_of_which_little_is_shown_is_not_loaded(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(features=4, tiles=9)), Step(epoch=1, global_step=10))
    sink.write(report(gallery(features=1, tiles=1)), Step(epoch=2, global_step=20))
    sink.write(report(gallery(features=1, tiles=1)), Step(epoch=3, global_step=30))
    pictures = stored(tmp_path)
    assert sorted(len(uris) for uris in pictures.values()) == [*[1] * 35, 2]
    looks = listed(tmp_path)["top_patches"]["fit"]
    first, *later = [items_of(tmp_path, look)[0]["packs"] for look in looks]
    assert later[0] == later[1] != first


def test_pictures_are_packed_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_PACK_BYTES", 10_000)
    sink = PageSink(tmp_path)
    galleries = [gallery(f"conv{n}", features=4, seed=n * 10_000) for n in range(5)]
    sink.write(report(*galleries), Step(epoch=1, global_step=10))
    (look,) = listed(tmp_path)["top_patches"]["fit"]
    packs = [item["packs"] for item in items_of(tmp_path, look)]
    assert len({pack for some in packs for pack in some}) > 5
    assert max(map(len, packs)) <= 4
    assert max(path.stat().st_size for path in (tmp_path / "pictures").iterdir()) < 13_000


def test_pictures_of_one_content_and_two_shapes_are_two(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    flat = torch.zeros(3, 2, 8, dtype=torch.uint8)
    sink.write(report(Picture("wide", flat), Picture("tall", flat.reshape(3, 8, 2))), Step(epoch=0, global_step=0))
    assert len(stored(tmp_path)) == 2


def test_the_same_step_again_replaces_item_by_item(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    first = report(gallery("a", seed=1), Scalar("a/dead", 3.0), notes=["One."])
    second = report(gallery("b", seed=2), Scalar("a/dead", 5.0), notes=["One.", "Two."])
    for each in (first, second):
        sink.write(each, Step(epoch=1, global_step=10))
    (look,) = listed(tmp_path)["top_patches"]["fit"]
    assert len(look["chunks"]) == 2
    assert look["names"] == [["Gallery", "a"], ["Scalar", "a/dead"], ["Gallery", "b"]]
    assert look["values"] == [5.0]


def test_views_stages_and_steps_are_kept_apart_and_in_order(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    for view, step in [
        ("a", Step(epoch=2, global_step=20)),
        ("b", Step(epoch=1, global_step=10)),
        ("a", Step(epoch=1, global_step=10)),
        ("a", Step(epoch=2, global_step=20, stage="test")),
        ("a", Step(epoch=2, global_step=20, stage="validate")),
    ]:
        sink.write(report(gallery(), view=view), step)
    assert [*listed(tmp_path)] == ["a", "b"]
    when = {key: [(look["epoch"], look["step"]) for look in looks] for key, looks in listed(tmp_path)["a"].items()}
    assert when == {"fit": [(1, 10), (2, 20)], "test": [(2, 20)], "validate": [(2, 20)]}


@contextmanager
def full_for(folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk is full whenever a file of this folder is to get its name."""

    def fail(source: Path, target: Path) -> None:
        if Path(target).parent.name == folder:
            full_disk()
        real(source, target)

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        yield


def test_a_later_process_goes_on_and_a_run_that_begins_anew_stands_beside(tmp_path: Path) -> None:
    def run(*looks: int, view: str = "top_patches") -> None:
        sink = PageSink(tmp_path)
        for look in looks:
            sink.write(report(gallery(seed=look), Scalar("s", look), view=view), Step(epoch=look, global_step=look))

    run(1, 2, 3)
    run(3, 4)  # from the checkpoint of epoch 2
    run(4, view="other")  # another monitor's sink
    run(1, 2)
    run(3)
    found = {key: [look["step"] for look in looks] for key, looks in listed(tmp_path)["top_patches"].items()}
    assert found == {"fit": [1, 2, 3, 4], "fit~2": [1, 2, 3]}
    assert [len(look["chunks"]) for look in listed(tmp_path)["top_patches"]["fit"]] == [1, 1, 2, 1]
    assert [*listed(tmp_path)["other"]] == ["fit"]


def test_runs_and_data_sets_that_are_known_by_name_are_kept_apart(tmp_path: Path) -> None:
    for run, data, looks in (("a", "", (1, 2)), ("b", "", (3, 4)), ("a", "digits", (2,)), ("a", "", (1, 3))):
        sink = PageSink(tmp_path)
        for look in looks:
            sink.write(report(gallery()), Step(epoch=look, global_step=look, run=run, data=data))
    PageSink(tmp_path).write(report(gallery()), Step(epoch=9, global_step=9))
    found = {key: [look["step"] for look in looks] for key, looks in listed(tmp_path)["top_patches"].items()}
    assert found == {"fit": [1, 2, 3], "fit~2": [3, 4], "fit~digits": [2], "fit~3": [9]}


def test_two_sinks_at_one_time_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second one writes while the first has gathered its list and not written it.
    first, second = PageSink(tmp_path), PageSink(tmp_path)
    first.write(report(gallery()), Step(epoch=1, global_step=10))
    inside = []

    def meanwhile(source: Path, target: Path) -> None:
        if Path(target).name == "looks.js" and not inside:
            inside.append(1)
            second.write(report(gallery(), view="other"), Step(epoch=1, global_step=10))
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", meanwhile)
    first.write(report(gallery()), Step(epoch=2, global_step=20))
    assert steps(first) == [10, 20]
    assert steps(first, "other") == [10]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("how", ["together", "killed"])
@pytest.mark.fault(
    "processes",
    "processes write one page at the same time, or are killed (SIGKILL) while they do",
    "every look that was announced as written is there, with its pictures",
)
def test_what_processes_said_they_had_written_is_there(how: str, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("page_writers.py"))
    printed = subprocess.run([sys.executable, script, str(tmp_path), how], capture_output=True, text=True, check=True)
    said = Counter((line.split()[0], int(line.split()[1])) for line in printed.stdout.splitlines())
    if how == "killed":  # the next process continues
        PageSink(tmp_path).write(report(gallery(), Scalar("number", 1.0), view="after"), Step(epoch=1, global_step=1))
        assert len(said) >= 20
    else:
        assert len(said) == 60
    found, names = listed(tmp_path), stored(tmp_path).keys()
    assert {(*series,) for series in found.values()} == {("fit",)}
    looks = {(view, look["step"]): look for view, series in found.items() for look in series["fit"]}
    assert [key for key in said if key not in looks] == []
    for (_, step), look in looks.items():
        (item,) = items_of(tmp_path, look)
        assert [tile[0] for tile in tiles_of(item) if tile[0] not in names] == []
        assert look["values"] == [step]


def test_what_a_dead_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = files(tmp_path)
    old, new = tmp_path / "looks" / f".cnnviz-{'0' * 16}.tmp", tmp_path / "pictures" / f".cnnviz-{'1' * 16}.tmp"
    unused, fresh = tmp_path / "pictures" / "1-2-3.js", tmp_path / "pictures" / "1-2-4.js"
    for path in (old, new, unused, fresh):
        path.write_text('cnnviz.pictures("1-2-3",{},\n[]);\n')
    for path in (old, unused):
        os.utime(path, (0, 0))
    PageSink(tmp_path).write(report(gallery()), Step(epoch=2, global_step=20))
    kept = {path.relative_to(tmp_path).as_posix() for path in (new, fresh)}
    look = max((tmp_path / "looks").glob("*.js")).name
    assert {*files(tmp_path)} - {*before} - kept == {f"looks/{look}", f"parts/{look}"}
    assert kept <= {*files(tmp_path)}


def test_what_is_no_look_of_ours_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    (chunk,) = (tmp_path / "looks").iterdir()
    head, _, _ = chunk.read_text().partition("\n")
    texts = {
        "a": "",
        "b": "alert(1)",
        "c": 'cnnviz.look("c",[1],\nnull);',
        "d": 'cnnviz.look("d",{"contents":[],"scalars":[],"packs":[]},\nnull);',
        "e": head.replace(chunk.stem, "e").replace('"epoch":1', '"epoch":"<script>"'),
        "f": head.replace(chunk.stem, "f").replace('"scalars":[]', '"scalars":["x"]'),
        "../g": head,
        "H": head,
    }
    for name, text in texts.items():
        (tmp_path / "looks" / f"{name}.js").write_text(text)
    (tmp_path / "looks" / "i.js").write_bytes(b"\xff\xfe")
    other = PageSink(tmp_path)
    other.write(report(gallery()), Step(epoch=2, global_step=20))
    assert steps(other) == [10, 20]


def thinned(folder: Path, looks: int, megabytes: float) -> tuple[list[int], list[int]]:
    """The steps of the looks that stay and of those that are left out, each look of about 60 kB."""
    sink = PageSink(folder, max_megabytes=megabytes)
    for number in range(1, looks + 1):
        items = (gallery(seed=number * 10_000, features=2), Scalar("s", float(number)))
        sink.write(report(*items), Step(epoch=number, global_step=number))
    found = listed(folder)["top_patches"]["fit"]
    assert [look["values"] for look in found] == [[float(number)] for number in range(1, looks + 1)]
    for look in found:
        items_of(folder, look)
    stay = {look["step"]: bool(look["chunks"]) for look in found}
    return [step for step, stays in stay.items() if stays], [step for step, stays in stay.items() if not stays]


def test_a_page_without_a_limit_keeps_all_looks(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    for number in range(60):
        sink.write(report(gallery(seed=number * 10_000, features=1, tiles=2)), Step(epoch=number, global_step=number))
    assert steps(sink) == list(range(60))


def test_a_page_too_large_loses_inner_looks_log_spaced(tmp_path: Path) -> None:
    stay, gone = thinned(tmp_path, 24, 0.1)
    assert {1, 2, 5, 10, 20, 24} <= set(stay), stay
    assert gone == [step for step in range(1, max(gone) + 1) if step not in {1, 2, 5, 10, 20}]
    assert sum(path.stat().st_size for path in (tmp_path / "pictures").iterdir()) <= 100_000
    used = {pack for look in listed(tmp_path)["top_patches"]["fit"] for pack in look["chunks"]}
    assert {path.stem.rpartition("-")[0] for path in (tmp_path / "pictures").iterdir()} == used


def test_the_first_and_the_newest_look_stay_whatever_their_size(tmp_path: Path) -> None:
    assert thinned(tmp_path, 6, 0.001)[0] == [1, 6]
    sink = PageSink(tmp_path, max_megabytes=0.001)
    sink.write(report(gallery(seed=5)), Step(epoch=3, global_step=3))
    assert steps(sink) == [1, 3, 6], "what was just written must show"


def test_a_pack_that_another_process_deletes_meanwhile_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = PageSink(tmp_path), PageSink(tmp_path, max_megabytes=0.02)
    for number in range(3):
        first.write(report(gallery(seed=number * 10_000)), Step(epoch=number, global_step=number))
    inside = []

    def meanwhile(source: Path, target: Path) -> None:
        if Path(target).parent.name == "looks" and not inside:
            inside.append(1)
            second.write(report(gallery(seed=77), view="other"), Step(epoch=9, global_step=9))
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", meanwhile)
    first.write(report(gallery(seed=10_000)), Step(epoch=3, global_step=3))  # as its second look, which goes
    assert steps(first) == [0, 2, 3]
    names = stored(tmp_path).keys()
    for look in listed(tmp_path)["top_patches"]["fit"]:
        for item in items_of(tmp_path, look):
            assert {tile[0] for tile in tiles_of(item)} <= names
            assert all((tmp_path / "pictures" / f"{pack}.js").exists() for pack in item["packs"])


def test_a_picture_that_is_still_shown_stays(tmp_path: Path) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.03)
    for number in range(8):
        sink.write(report(gallery("same"), gallery(seed=number * 10_000)), Step(epoch=number, global_step=number))
    names = stored(tmp_path).keys()
    for look in listed(tmp_path)["top_patches"]["fit"]:
        for item in items_of(tmp_path, look):
            assert {tile[0] for tile in tiles_of(item)} <= names
            assert all((tmp_path / "pictures" / f"{pack}.js").exists() for pack in item["packs"])


def test_an_item_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = files(tmp_path)
    with monkeypatch.context() as patch:

        def broken(content: torch.Tensor) -> str:
            raise ArithmeticError("no picture")

        patch.setattr(page_items, "data_uri", broken)
        bad = report(gallery(seed=77), Curve("c", (), x_label="x", y_label="y"))
        with pytest.raises(ArithmeticError, match="no picture"):
            sink.write(bad, Step(epoch=2, global_step=20))
    assert differing(before, files(tmp_path)) == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    numbers = {"nan": math.nan, "inf": -math.inf, "numpy": np.float32(0.5), "int": 7, "text": "NaN"}
    row = Row("r", (Tile(pixels(0), "t", numbers),), {"7": 1, "3": 2})
    items = (Gallery("g", (row,)), Scalar("s", math.nan), Table("t", ("a", "b"), ((math.inf, None),)))
    sink.write(report(*items), Step(epoch=0, global_step=0))
    (look,) = listed(tmp_path)["top_patches"]["fit"]
    shown = items_of(tmp_path, look)
    assert shown[0]["keys"] == [["nan", "inf", "numpy", "int", "text"]]
    assert tiles_of(shown[0])[0][3] == [0, None, None, 0.5, 7, "NaN"]
    assert shown[0]["rows"][0][1] == [["7", 1], ["3", 2]]
    assert shown[1]["rows"] == [[None, None]]
    assert look["values"] == [None]


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    rows = tuple((n, Tile(pixels(n))) for n in range(510))
    sink.write(report(Table("t", ("n", "tile"), rows)), Step(epoch=0, global_step=0))
    (table,) = items_of(tmp_path, listed(tmp_path)["top_patches"]["fit"][0])
    assert (len(table["rows"]), table["total"], len(stored(tmp_path))) == (500, 510, 500)


def smooth(side: int) -> torch.Tensor:
    """An image that JPEG keeps nearly as it is: two ramps and a wave."""
    x = torch.linspace(0, 1, side)
    channels = (x.view(-1, 1).expand(side, side), x.expand(side, side), (x.view(-1, 1) * 9).sin().expand(side, side))
    return (torch.stack(channels) * 100 + 120).to(torch.uint8)


def cut(image: torch.Tensor, box: tuple[int, int, int, int], offset: tuple[int, int] = (0, 0), side: int = 0) -> Tile:
    """A tile that was cut from an image, in a square of the side if there is one."""
    top, left, bottom, right = box
    patch = image[:, top:bottom, left:right]
    if side:
        patch = torch.tensor([203, 213, 232], dtype=torch.uint8).view(3, 1, 1).repeat(1, side, side)
        patch[:, offset[0] : offset[0] + bottom - top, offset[1] : offset[1] + right - left] = image[
            :, top:bottom, left:right
        ]
    return Tile(patch, source=ImageCrop(pixels=image, box=box, offset=offset, index=7))


def test_patches_of_one_image_are_stored_as_that_image(tmp_path: Path) -> None:
    sink, image = PageSink(tmp_path), smooth(100)
    rows = tuple(
        Row(f"channel {n}", (cut(image, (n, 3, n + 40, 43)), cut(image, (9, n, 49, n + 40)))) for n in range(9)
    )
    table = Table("t", ("patch",), ((cut(image, (0, 0, 50, 60)),),))
    sink.write(report(Gallery("conv", rows), table), Step(epoch=1, global_step=10))
    sink.write(report(Gallery("conv", rows[3:])), Step(epoch=2, global_step=20))
    ((name, uris),) = stored(tmp_path).items()
    assert len(uris) == 1
    items = [item for look in listed(tmp_path)["top_patches"]["fit"] for item in items_of(tmp_path, look)]
    assert items[0]["rows"][2][2][0][:2] == [name, [100, 100, 2, 3, 42, 43, 0, 0]]
    assert items[1]["rows"][0][0]["crop"] == [100, 100, 0, 0, 50, 60, 0, 0]


def test_a_tiny_patch_is_kept_without_loss_and_one_of_a_tiny_image_is_cut_from_it(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    large, tiny = smooth(100), smooth(28)
    tiles = [cut(image, (n, 0, n + 20, 20)) for image in (large, tiny) for n in range(4)]
    sink.write(report(Gallery("conv", (Row("channel 0", tuple(tiles)),))), Step(epoch=1, global_step=10))
    (item,) = items_of(tmp_path, listed(tmp_path)["top_patches"]["fit"][0])
    assert [crop is None for _, crop, *_ in tiles_of(item)] == [True] * 4 + [False] * 4
    # The large image is there, too: to show where on it the patches lie.
    media = [uris[0].partition(";")[0] for uris in stored(tmp_path).values()]
    assert sorted(media) == ["data:image/jpeg", *["data:image/png"] * 5]
    wholes = [tile[7] for tile in tiles_of(item)[:4]]
    assert len({name for name, _ in wholes}) == 1
    assert [crop for _, crop in wholes] == [[100, 100, n, 0, n + 20, 20, 0, 0] for n in range(4)]


# --- what is long, and what is known of all units ---


def test_a_long_gallery_is_written_in_parts_that_go_with_their_look(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    long = gallery(features=1500, tiles=1, side=2)
    sink.write(report(long, gallery("short")), Step(epoch=1, global_step=10))
    (chunk,) = (path.stem for path in (tmp_path / "looks").iterdir())
    items = called(tmp_path / "parts" / f"{chunk}.js")[1]["items"]
    assert ["rows" in item for item in items] == [False, True]
    assert sum(length for _, length in items[0]["parts"]) == 1500
    assert items[0]["channels"] == list(range(1500))
    names = [chunk, *(name for name, _ in items[0]["parts"])]
    assert sorted(path.stem for path in (tmp_path / "parts").iterdir()) == sorted(names)
    assert max(path.stat().st_size for path in (tmp_path / "parts").iterdir()) < 130_000
    for row in items_of(tmp_path, listed(tmp_path)["top_patches"]["fit"][0])[0]["rows"]:
        packs = [items[0]["packs"][place] for place in row[3]]
        assert {row[2][0][0]} <= {name for pack in packs for name in called(tmp_path / "pictures" / f"{pack}.js")[1]}


def test_parts_of_a_look_that_cannot_be_written_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = files(tmp_path)

    with full_for("looks", monkeypatch), pytest.raises(OSError, match="No space left"):
        sink.write(report(gallery(features=400, tiles=1, side=2)), Step(epoch=2, global_step=20))
    assert differing(before, files(tmp_path)) == []


def test_parts_of_a_look_that_is_left_out_are_deleted(tmp_path: Path) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.001)
    for number in range(4):
        look = gallery(features=400, tiles=1, side=2, seed=number * 1000)
        sink.write(report(look), Step(epoch=number, global_step=number))
    chunks = {chunk for look in listed(tmp_path)["top_patches"]["fit"] for chunk in look["chunks"]}
    assert steps(sink) == [0, 3]
    assert {"-".join(path.stem.split("-")[:3]) for path in (tmp_path / "parts").iterdir()} == chunks


def test_facts_of_all_units_stand_in_the_look_as_numbers(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(), known=[facts(units=3)]), Step(epoch=1, global_step=10))
    told = called(next((tmp_path / "parts").iterdir()))[1]["facts"]
    assert told == {
        "classes": ["cat", "goldfish"],
        "layers": [
            {
                "layer": "features.0",
                "channels": [["max activation", [0.0, 1.0, 2.0]], ["dead", [0, 0, 1]]],
                "classes": [[0, 0.9, 1, 0.1], [1, 0.733333, 0, 0.1], [0, 0.566667, 1, 0.1]],
                "neighbors": [[1, 0.75], [2, 0.75], [0, 0.75]],
                "told": [[0, 3.25], [1, 3.25], [0, 3.25]],
                "histograms": [None, None, [0.0, 0.5, 7, 0, 1]],
            }
        ],
    }


def as_before_format_3(folder: Path, file: Path, *, version: int, left_out: bool = False) -> None:
    """Write a look as an older page had it: its items stand in its own file, which changed when it was left out."""
    (name, head), (_, body) = called(file), called(folder / "parts" / f"{file.stem}.js")
    (folder / "parts" / f"{file.stem}.js").unlink()
    head |= {"parts": [], "left_out": left_out}
    if version < 2:
        for new in ("network", "parts"):
            del head[new]
        head["contents"] = [pair[:2] for pair in head["contents"]]
        (item,) = body["items"]
        ((caption, numbers, ((picture, crop, about, _, _, _),), _),) = item.pop("rows")
        old = {"caption": caption, "numbers": numbers, "tiles": [[picture, crop, about, [["activation", 1.0]]]]}
        kept = ("kind", "name", "caption", "numbers", "enlarge", "columns", "size", "packs")
        body = {"notes": [], "items": [{key: item[key] for key in kept} | {"rows": [old]}]}
    content = "null" if left_out else json.dumps(body)
    file.write_text(f'cnnviz.look("{name}",{json.dumps(head)},\n{content});\n')


@pytest.mark.parametrize("version", [1, 2])
def test_looks_of_a_page_before_this_format_stay_on_it(version: int, tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(features=1, tiles=1)), Step(epoch=1, global_step=10))
    (file,) = (tmp_path / "looks").iterdir()
    as_before_format_3(tmp_path, file, version=version)
    other = PageSink(tmp_path)
    other.write(report(gallery()), Step(epoch=2, global_step=20))
    assert steps(other) == [10, 20]
    assert [path.name for path in (tmp_path / "pictures").iterdir() if file.stem in path.name] != []


# --- the list, which does not grow with the looks ---


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_module, "_BLOCK", 4)


def numbers_of(sink: PageSink, view: str = "v") -> list[list[float]]:
    """The scalars of all looks of a view's only series, in order."""
    (looks,) = listed(sink.path.parent)[view].values()
    return [look["values"] for look in looks]


def write_numbers(sink: PageSink, first: int, last: int, view: str = "v", stage: str = "fit") -> None:
    for n in range(first, last):
        sink.write(report(Scalar("n", n), view=view), Step(epoch=n, global_step=n, stage=stage))


def blocks(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "lists").glob("*.js"))


def test_what_a_look_writes_does_not_grow_with_the_looks_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, written = PageSink(tmp_path), [0]

    def watch(source: Path, target: Path) -> None:
        written[-1] += Path(source).stat().st_size
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", watch)
    monkeypatch.setattr(list_module, "_BLOCK", 10)
    for number in range(100, 190):
        write_numbers(sink, number, number + 1)
        written.append(0)
    # As many blocks were closed in both parts. Each has a name of 15 bytes in the list: the six between are 90 bytes.
    early, late = (sum(written[first : first + 20]) / 20 for first in (10, 70))
    assert early + 60 < late < early + 120
    assert len(blocks(tmp_path)) == 9
    assert numbers_of(sink) == [[number] for number in range(100, 190)]


@pytest.mark.usefixtures("small_blocks")
def test_a_later_process_goes_on_with_the_blocks(tmp_path: Path) -> None:
    write_numbers(PageSink(tmp_path), 0, 6)
    before = {name: content for name, content in files(tmp_path).items() if name != "looks.js"}
    sink = PageSink(tmp_path)
    write_numbers(sink, 6, 15)
    assert {name: content for name, content in files(tmp_path).items() if name in before} == before
    assert numbers_of(sink) == [[number] for number in range(15)]
    (content,) = called(tmp_path / "looks.js")
    assert (len(content["blocks"]), len(content["looks"])) == (3, 3)


@pytest.mark.usefixtures("small_blocks")
def test_sinks_that_close_the_same_looks_at_one_time_show_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second one writes while the first has gathered a block and not written it.
    first, second = PageSink(tmp_path), PageSink(tmp_path)
    write_numbers(first, 0, 3)
    inside = []

    def meanwhile(source: Path, target: Path) -> None:
        if Path(target).parent.name == "lists" and not inside:
            inside.append(1)
            write_numbers(second, 0, 6, "other")
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", meanwhile)
    write_numbers(first, 3, 4)
    told = Counter(name for block in blocks(tmp_path) for name in called(tmp_path / "lists" / f"{block}.js")[1])
    assert (len(told), max(told.values())) == (8, 1), "the same looks make the same block"
    write_numbers(first, 4, 9)
    assert numbers_of(first) == [[number] for number in range(9)]
    assert numbers_of(first, "other") == [[number] for number in range(6)]


@pytest.mark.usefixtures("small_blocks")
def test_looks_that_two_blocks_tell_of_count_once(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    write_numbers(sink, 0, 4)
    (block,) = blocks(tmp_path)
    write_numbers(sink, 4, 5)
    (tmp_path / "lists" / f"{block}.js").rename(tmp_path / "away.js")
    other = PageSink(tmp_path)
    write_numbers(other, 5, 8)  # its blocks begin at the same look, and hold others
    (tmp_path / "away.js").rename(tmp_path / "lists" / f"{block}.js")
    late = min((tmp_path / "looks").iterdir())
    write_numbers(PageSink(tmp_path), 8, 9)
    assert numbers_of(sink) == [[number] for number in range(9)]
    late.unlink()
    write_numbers(other, 9, 10)
    assert numbers_of(sink) == [[number] for number in range(1, 10)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("text", ["", 'cnnviz.block("x",[1],\n{', "alert(1)", None])
def test_looks_of_a_block_that_is_damaged_or_gone_are_told_of_again(text: str | None, tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    write_numbers(sink, 0, 9)
    block = tmp_path / "lists" / f"{blocks(tmp_path)[0]}.js"
    block.unlink()
    if text is not None:
        block.write_text(text)
        sink = PageSink(tmp_path)
    write_numbers(sink, 9, 10)
    assert numbers_of(sink) == [[number] for number in range(10)]


@pytest.mark.usefixtures("small_blocks")
def test_looks_that_were_deleted_leave_the_list(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    write_numbers(sink, 0, 9)
    gone = sorted((tmp_path / "looks").iterdir())[1:3]
    for path in gone:
        path.unlink()
    write_numbers(sink, 9, 10)
    assert numbers_of(sink) == [[number] for number in (0, *range(3, 10))]
    told = {name for block in blocks(tmp_path) for name in called(tmp_path / "lists" / f"{block}.js")[1]}
    assert told.isdisjoint(path.stem for path in gone)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_that_cannot_be_written_costs_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PageSink(tmp_path)

    with full_for("lists", monkeypatch):
        write_numbers(sink, 0, 6)
    assert numbers_of(sink) == [[number] for number in range(6)]
    assert blocks(tmp_path) == []
    write_numbers(sink, 6, 7)
    assert numbers_of(sink) == [[number] for number in range(7)]
    assert len(blocks(tmp_path)) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("version", [2, 3])
def test_looks_that_are_left_out_are_so_whatever_block_tells_of_them(version: int, tmp_path: Path) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.02)
    for number in range(18):
        items = (gallery(seed=number * 10_000, features=1), Scalar("n", number))
        sink.write(report(*items), Step(epoch=number, global_step=number))
    shown = steps(sink)
    gone = [path for path in (tmp_path / "looks").iterdir() if path.stem.endswith("-out")]
    assert len(gone) > 12
    if version == 2:
        for path in gone:
            (name, head) = called(path)
            (tmp_path / "looks" / f"{name}.js").write_text(f'cnnviz.look("{name}",{json.dumps(head)},\nnull);\n')
            path.unlink()
    other = PageSink(tmp_path)
    other.write(report(gallery()), Step(epoch=18, global_step=18))
    (looks,) = listed(tmp_path)["top_patches"].values()
    assert steps(other) == [*shown, 18]
    assert [look["values"] for look in looks] == [*([number] for number in range(18)), []]
    source = "top_patches"
    assert [other.shows(source, Step(epoch=n, global_step=n)) for n in range(19)] == [
        n in [*shown, 18] for n in range(19)
    ]


# --- in a browser ---


def settled(page: Any) -> Any:
    """The page, once everything that it asked for is there and shown."""
    frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 5)))"
    quiet = 0
    for _ in range(1000):  # wait_for_function would need `eval`, which the page forbids
        page.evaluate(frame)
        there = page.evaluate("drawing > 0 && !waiting && pending === 0 && typed === 0 && arriving === 0")
        quiet = quiet + 1 if there else 0
        if quiet == 4:  # blocks are filled as they are seen
            break
    return page


def at(page: Any, sink: PageSink, place: str = "") -> Any:
    """The page at a place, as from a link."""
    page.goto("about:blank")
    page.goto(f"{sink.path.as_uri()}{place}")
    return settled(page)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def sources(page: Any, selector: str) -> list[str]:
    return page.locator(f"{selector} img").evaluate_all("images => images.map((image) => image.src)")


def feature_list(page: Any) -> list[str]:
    return page.locator(".feature strong").all_inner_texts()


def where(page: Any) -> str:
    return page.locator("#looks output").inner_text()


@pytest.fixture
def written(tmp_path: Path) -> PageSink:
    """Two layers, three looks; from look to look all tiles change."""
    sink = PageSink(tmp_path / "a folder with spaces & #")
    for look in range(3):
        seed = look * 10_000
        items = (
            gallery("features.0", seed=seed),
            gallery("features.3", seed=seed + 5_000, side=40),
            Scalar("features.0/dead_features", [math.nan, 7.0, 0.123456][look], layer="features.0"),
        )
        known = [facts("features.0"), facts("features.3")]
        step = Step(epoch=look, global_step=look * 10, network="TinyNet", data="9 images")
        sink.write(report(*items, notes=["Normalization undone."], known=known), step)
    return sink


@pytest.mark.browser
def test_opens_from_the_disk_at_the_newest_look(written: PageSink, browser_page: Any) -> None:
    page = at(browser_page, written)
    assert page.locator("h1").inner_text() == "TinyNet"
    assert page.locator("#about").inner_text().startswith("9 images · fit · epoch 2 · step 20 · ")
    assert where(page) == "epoch 2 · step 20"
    assert page.locator("#network svg a").count() == 2
    assert len(sources(page, ".glance")) == 6
    page.get_by_test_id("layer-features.0").click()
    settled(page)
    assert page.locator("main h2").inner_text() == "features.0"
    assert feature_list(page) == ["unit 0", "unit 1", "unit 2"]
    assert page.locator("#notes").inner_text() == "Normalization undone."
    assert words(page.locator(".stat").inner_text()) == "dead features 0.1235"
    assert page.get_by_test_id("layer-features.0").get_attribute("aria-current") == "page"
    widths = page.locator(".feature img").evaluate_all("images => images.map((image) => image.naturalWidth)")
    assert widths == [12] * 27


@pytest.mark.browser
def test_a_unit_has_a_page_of_its_own_and_back_leads_away(written: PageSink, browser_page: Any) -> None:
    page = at(browser_page, written, "#/features.3")
    page.get_by_test_id("feature-1").click()
    settled(page)
    assert page.locator("#unit-title").inner_text() == "features.3 · unit 1"
    for k in range(9):
        image = page.get_by_test_id(f"patch-{k}").locator("img")
        form = image.evaluate("i => [i.naturalWidth, i.width, getComputedStyle(i).imageRendering]")
        assert form == [40, 160, "pixelated"]
    ranks = page.locator(".rank").all_inner_texts()
    assert [words(text) for text in ranks][1] == "2 · class 1 activation 8.877 · image 25001 patch"
    assert page.url.endswith("#/features.3/1")
    page.get_by_test_id("next-unit").click()
    settled(page)
    assert page.locator("#unit-title").inner_text() == "features.3 · unit 2"
    for title in ("features.3 · unit 1", "features.3"):
        page.go_back()
        settled(page)
        assert page.locator("main h2").inner_text() == title


@pytest.mark.browser
def test_what_two_views_know_of_a_unit_stands_together(tmp_path: Path, browser_page: Any) -> None:
    sink, image = PageSink(tmp_path), smooth(100)
    patch = cut(image, (0, 30, 40, 70))
    numbers = {"activation": 3.5, "dataset index": 7, "label": "n01443537_goldfish"}
    patch = Tile(patch.pixels, "", numbers, source=patch.source, shows="patch", rank=0)
    mined = Gallery("conv", (Row("feature 5", (patch,), channel=5),), layer="conv")
    sink.write(report(mined, known=[facts("conv", units=9)]), Step(epoch=1, global_step=10))
    gray = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    gray[:, 10:20, 10:20] = 255
    # Under other captions and another name, and in another order.
    projected = Tile(gray, "", {"full contrast": 0.0123456}, shows="projection", rank=0)
    optimum = Tile(pixels(9, 24), "12", {"activation": 12.0}, shows="optimum", rank=0)
    others = {
        "deconvnet": Gallery("c", (Row("x", (Tile(gray, shows="empty"), projected, patch), channel=5),), layer="conv"),
        "maximization": Gallery("made", (Row("channel five", (optimum,), channel=5),), layer="conv"),
        "filters": Gallery("kernels", (Row("f", (Tile(pixels(3, 5), shows="filter"),), channel=5),), layer="conv"),
    }
    for view, item in others.items():
        sink.write(report(item, view=view), Step(epoch=1, global_step=10))
    page = at(browser_page, sink, "#/conv/5")
    assert words(page.locator(".rank h3").inner_text()) == "1 · goldfish"
    assert page.locator(".rank .four figcaption").all_inner_texts() == [
        "on its image",
        "patch",
        "projection, to ±0.012",
        "patch \u00d7 projection",
    ]
    box = page.locator(".whole .box").evaluate("b => ['x', 'y', 'width', 'height'].map((name) => b.getAttribute(name))")
    assert box == ["30", "0", "40", "40"]
    data = "c.getContext('2d').getImageData(0, 0, 40, 40).data"
    alpha = f"c => {{ const data = {data}; return [data[4 * (15 * 40 + 15) + 3], data[3]] }}"
    assert page.get_by_test_id("masked-0").locator("canvas").evaluate(alpha) == [255, pytest.approx(0, abs=8)]
    assert len(sources(page, "[data-testid=unit-optimum]")) == 1
    assert len(sources(page, "[data-testid=unit-filter]")) == 1
    assert words(page.get_by_test_id("unit-neighbors").inner_text()) == "Nearest units, by correlation 6 0.75"
    assert words(page.get_by_test_id("unit-activity").inner_text()).endswith("Tells best: goldfish (3.3 sd)")
    assert words(page.get_by_test_id("unit-classes").inner_text()).startswith("Which classes drive it goldfish 62 %")


@pytest.mark.browser
def test_a_tiny_patch_is_marked_on_its_whole_image(tmp_path: Path, browser_page: Any) -> None:
    sink, plain = PageSink(tmp_path), cut(smooth(100), (10, 20, 17, 27))
    tile = Tile(plain.pixels, source=plain.source, shows="patch", rank=0)
    sink.write(report(Gallery("conv", (Row("", (tile,), channel=0),), layer="conv")), Step(epoch=1, global_step=10))
    page = at(browser_page, sink, "#/conv/0")
    box = page.locator(".whole .box").evaluate("b => ['x', 'y', 'width', 'height'].map((name) => b.getAttribute(name))")
    assert box == ["20", "10", "7", "7"]
    assert page.locator(".whole image").get_attribute("href").startswith("data:image/jpeg")


@pytest.mark.browser
def test_a_page_in_one_file_needs_no_other(written: PageSink, tmp_path: Path, browser_page: Any) -> None:
    alone = tmp_path / "alone" / "looks.html"
    alone.parent.mkdir()
    alone.write_text(bundled_page(written.path.parent), encoding="utf-8")
    page = browser_page
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(alone.as_uri() + "#/features.3/1?epoch=1")
    settled(page)
    assert page.locator("#unit-title").inner_text() == "features.3 · unit 1"
    assert all(source.startswith("data:") for source in sources(page, ".rank"))
    page.get_by_test_id("next-look").click()
    settled(page)
    assert where(page) == "epoch 2 · step 20"
    assert [url for url in requests if not url.startswith("data:")] == [requests[0]]


@pytest.mark.browser
def test_colors_and_tiles_are_named_and_folders_of_imagenet_read_as_names(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    scale = ColorScale(("#000000", "#ff0000"), "nothing", "for the true class", "half")
    names = ("tile 0", "tile 1 of a long name, long", "tile 2")
    tiles = tuple(Tile(pixels(k, 64), name) for k, name in enumerate(names))
    row = Row("n01443537_goldfish", tiles, {"most probable": "n02002724_black_stork"})
    sink.write(
        report(Gallery("maps", (row,), scale=scale, named=True), view="attribution"), Step(epoch=0, global_step=0)
    )
    page = at(browser_page, sink, "#/?view=attribution")
    bar = page.locator(".bar")
    assert bar.locator("span").all_inner_texts() == ["nothing", "", "for the true class, half in the middle"]
    assert "rgb(0, 0, 0), rgb(255, 0, 0)" in bar.locator(".colors").evaluate(
        "node => getComputedStyle(node).backgroundImage"
    )
    assert page.locator(".tile .name").all_inner_texts() == ["tile 0", "tile 1 of a long name, long", "tile 2"]
    widths = page.locator(".tile img").evaluate_all("all => all.map((image) => image.getBoundingClientRect().width)")
    assert len({*widths}) == 1  # whatever their names
    assert page.get_by_test_id("feature-0").locator("strong").inner_text() == "goldfish"
    assert "black stork" in page.get_by_test_id("feature-0").inner_text()
    assert not page.locator("#toolbar").is_visible()  # one look: there is nothing to choose


def test_a_tile_of_its_own_says_where_its_picture_lies(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    large = smooth(100)
    tiles = (
        cut(large, (0, 5, 15, 25), (5, 0), 20),  # tiny, and cut off at its image's border
        Tile(pixels(1, 20), shows="optimum", inside=(2, 3, 18, 20)),
        Tile(pixels(2, 20), shows="optimum", inside=(0, 0, 20, 20)),
        Tile(pixels(3, 20), shows="optimum"),
    )
    sink.write(report(Gallery("conv", (Row("", tiles),))), Step(epoch=1, global_step=10))
    (item,) = items_of(tmp_path, listed(tmp_path)["top_patches"]["fit"][0])
    crops = [tile[1] for tile in tiles_of(item)]
    assert crops == [[20, 20, 5, 0, 20, 20, 5, 0], [20, 20, 2, 3, 18, 20, 2, 3], None, None]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_no_part_of_a_picture_has_the_color_of_the_theme(
    scheme: Any, tmp_path: Path, browser_page: Any
) -> None:
    sink = PageSink(tmp_path)
    # Tiny, so that it has a picture of its own; and one that was cut from no image.
    patch = cut(smooth(100), (0, 0, 20, 10), (0, 10), 20)
    tiles = (patch, Tile(pixels(1, 20), shows="strongest image", inside=(0, 10, 20, 20)))
    sink.write(report(Gallery("conv", (Row("", tiles),))), Step(epoch=1, global_step=10))
    browser_page.emulate_media(color_scheme=scheme)
    page = at(browser_page, sink, "#/?view=top_patches")
    wanted = (203, 213, 232) if scheme == "light" else (44, 52, 66)
    for place in range(2):
        box = page.locator(".crop").nth(place).bounding_box()
        clip = {"x": box["x"] + 2, "y": box["y"] + box["height"] / 2, "width": 4, "height": 4}
        shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        assert shot.getpixel((1, 1)) == wanted


@pytest.mark.browser
def test_patches_of_the_overview_are_named_by_rank_and_class(tmp_path: Path, browser_page: Any) -> None:
    sink, labels = PageSink(tmp_path), ["n01443537_goldfish", "tench", "n02002724_black_stork"]
    ranked = tuple(
        Tile(pixels(rank), "9.9", {"activation": 9.9, "label": label}, shows="patch", rank=rank)
        for rank, label in enumerate(labels)
    )
    row = Row("feature 4", ranked, channel=4)
    sink.write(report(Gallery("conv", (row,), layer="conv")), Step(epoch=1, global_step=1))
    page = at(browser_page, sink, "#/conv")
    assert page.locator(".tile .name").all_inner_texts() == ["1 goldfish", "2 tench", "3 black stork"]
    assert feature_list(page) == ["unit 4"]


@pytest.mark.browser
def test_a_unit_whose_row_has_a_name_is_shown_with_it(tmp_path: Path, browser_page: Any) -> None:
    sink, tile = PageSink(tmp_path), Tile(pixels(1), shows="optimum")
    rows = tuple(Row(name, (tile,), channel=3) for name in ("n01443537_goldfish", "least effect", "channel 3"))
    sink.write(report(Gallery("conv", rows, layer="conv"), view="maximization"), Step(epoch=1, global_step=1))
    page = at(browser_page, sink, "#/conv?view=maximization")
    assert feature_list(page) == ["unit 3 · goldfish", "unit 3 · least effect", "unit 3"]


@pytest.mark.browser
def test_names_of_tiles_stay_within_their_block(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    tiles = tuple(Tile(pixels(number, 96), f"{number}: 12345.678 and more", shows="map") for number in range(16))
    row = Row("image 7", tiles)
    sink.write(report(Gallery("maps", (row,), named=True), view="maps"), Step(epoch=1, global_step=1))
    page = at(browser_page, sink, "#/?view=maps")
    block = page.locator(".feature").bounding_box()
    for box in (page.locator(".tile").nth(place).bounding_box() for place in range(16)):
        assert box["x"] + box["width"] <= block["x"] + block["width"]
        assert box["width"] == pytest.approx(96)  # pixel by pixel


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1280])
def test_an_axis_names_every_layer(width: int, tmp_path: Path, browser_page: Any) -> None:
    sink, names = PageSink(tmp_path), tuple(f"layer{number}.conv2" for number in range(70))
    line = Series("SVM", x=tuple(float(place) for place in range(1, 71)), y=(50.0,) * 69 + (60.0,))
    curve = Curve("by depth", (line,), x_label="layer", y_label="accuracy in %", x_names=names, percent=True)
    numbers = (Scalar("svm", 0.51234), Scalar("lost", math.nan))
    sink.write(report(curve, *numbers, view="layer_probe"), Step(epoch=1, global_step=1))
    browser_page.set_viewport_size({"width": width, "height": 800})
    page = at(browser_page, sink, "#/?view=layer_probe")
    assert page.locator(".chart svg > text title").all_text_contents() == list(names)
    ticks = page.locator(".chart svg > text[transform]")
    rights = ticks.evaluate_all("all => all.map((text) => text.getBoundingClientRect().right)")
    assert min(after - before for before, after in pairwise(rights)) > 12
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # In the unit of the chart.
    assert words(page.locator(".stats").inner_text()) == f"svm 51.23 % lost {NOT_MEASURED}"


@pytest.mark.browser
def test_numbers_of_a_table_stand_at_the_right_also_as_text(tmp_path: Path, browser_page: Any) -> None:
    columns = ("layer", "kernel", "receptive field", "output", "parameters", "type")
    rows = (("0", "3", "11", "96x111x111", 23296, "Conv2d"), ("2", "3 x 2", ">=99", "64", None, "Conv2d"))
    table = Table("layers", columns, (*rows, ("4", "", "image", "10x1x1", 5130, "Linear")))
    sink = PageSink(tmp_path)
    sink.write(report(table, view="layer_table"), Step(epoch=1, global_step=1))
    page = at(browser_page, sink, "#/?view=layer_table")
    sides = page.locator("thead th").evaluate_all("all => all.map((cell) => getComputedStyle(cell).textAlign)")
    assert [side == "right" for side in sides] == [False, True, True, False, True, False]
    assert page.locator("tbody tr").first.locator("td").all_inner_texts()[3] == "23,296"


@pytest.mark.browser
def test_the_classes_of_a_cell_are_read_where_the_pointer_is(tmp_path: Path, browser_page: Any) -> None:
    sink, names = PageSink(tmp_path), [f"class {number}" for number in range(70)]
    sink.write(confusion_report(torch.eye(70), names), Step(epoch=0, global_step=0))
    page = at(browser_page, sink, "#/?view=confusion")
    image = page.locator("figure.vector img")
    frame, matrix = image.bounding_box(), confusion_report(torch.eye(70), names).items[0]
    assert isinstance(matrix, Picture)
    assert matrix.cells is not None
    left, top, width, height = matrix.cells.box
    for row, column in ((0, 0), (69, 69), (3, 41)):
        across, down = (
            (left + width * (column + 0.5) / 70) * frame["width"],
            (top + height * (row + 0.5) / 70) * frame["height"],
        )
        page.mouse.move(frame["x"] + across, frame["y"] + down)
        assert page.get_by_test_id("cell").inner_text() == f"true class class {row}, taken for class {column}"
    page.mouse.move(frame["x"] + 1, frame["y"] + 1)
    assert page.get_by_test_id("cell").inner_text() == ""
    # The dark cells of the drawn matrix are those of its diagonal: the box is where the cells are.
    drawn = matrix.pixels.float().mean(0)
    rows, columns = drawn.shape
    middles = [
        (round((top + height * (k + 0.5) / 70) * rows), round((left + width * (k + 0.5) / 70) * columns))
        for k in range(70)
    ]
    assert max(float(drawn[place]) for place in middles) < 100


@pytest.mark.browser
def test_a_dark_page_prints_black_on_white_and_says_what_is_left_out(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(features=200)), Step(epoch=0, global_step=0))
    page = browser_page
    page.emulate_media(color_scheme="dark")
    page = at(page, sink, "#/features.0?view=top_patches")
    ink = "getComputedStyle(document.body).color"
    assert page.evaluate(ink) == "rgb(236, 237, 240)"
    there = page.locator(".feature:has(.tiles)").count()
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ink) == "rgb(26, 27, 30)"
    assert 0 < there < 200
    assert page.locator(".feature:visible").count() == there
    assert (
        page.locator(".printed").inner_text() == f"{200 - there} more units are not printed: they were not scrolled to."
    )


@pytest.mark.browser
def test_the_slider_moves_through_the_looks(written: PageSink, browser_page: Any) -> None:
    page = at(browser_page, written, "#/features.0")
    newest = sources(page, "[data-testid=feature-0]")
    page.get_by_test_id("epoch-slider").fill("0")
    settled(page)
    assert where(page) == "epoch 0 · step 0"
    assert set(sources(page, "[data-testid=feature-0]")).isdisjoint(newest)
    assert page.locator(".stat b").inner_text() == NOT_MEASURED
    page.get_by_test_id("epoch-slider").evaluate("slider => slider.blur()")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        settled(page)
    assert where(page) == "epoch 2 · step 20"
    assert sources(page, "[data-testid=feature-0]") == newest


@pytest.mark.browser
def test_the_strip_of_a_unit_marks_where_its_image_changes(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for look, seed in enumerate((0, 0, 5_000)):
        sink.write(report(gallery(seed=seed)), Step(epoch=look, global_step=look * 10))
    page = at(browser_page, sink, "#/features.0/0?epoch=1")
    assert where(page) == "epoch 1 · step 10"
    page.locator(".evolution").scroll_into_view_if_needed()
    settled(page)
    marks = page.locator(".look").evaluate_all("looks => looks.map((look) => look.classList.contains('changed'))")
    assert marks == [False, False, True]
    page.get_by_test_id("strip-2").click()
    settled(page)
    assert where(page) == "epoch 2 · step 20"
    page.go_back()
    settled(page)
    assert where(page) == "epoch 1 · step 10"


@pytest.mark.browser
def test_a_reload_keeps_the_place_and_the_newest_moves_on(written: PageSink, browser_page: Any) -> None:
    page = at(browser_page, written, "#/features.3")
    written.write(report(gallery("features.3", seed=1)), Step(epoch=3, global_step=30))
    page.reload()
    settled(page)
    assert where(page) == "epoch 3 · step 30"
    assert page.locator("main h2").inner_text() == "features.3"
    at(page, written, "#/features.3/2?epoch=1")
    written.write(report(gallery("features.3", seed=2)), Step(epoch=4, global_step=40))
    page.reload()
    settled(page)
    assert where(page) == "epoch 1 · step 10"
    assert page.locator("#unit-title").inner_text() == "features.3 · unit 2"
    at(page, written, "#/gone/3?view=none&stage=strange&run=9&epoch=x")
    assert "There is no such layer here." in page.locator("main").inner_text()


@pytest.mark.browser
def test_what_is_new_is_offered_and_the_place_stays(written: PageSink, browser_page: Any) -> None:
    def look_again() -> str:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(80)
        settled(page)
        text: str = page.locator("#more").inner_text()
        return text

    page = at(browser_page, written, "#/features.3/2?epoch=1")
    assert look_again() == ""
    written.write(report(gallery("features.3", seed=1)), Step(epoch=3, global_step=30))
    written.write(report(gallery("features.3", seed=2)), Step(epoch=4, global_step=40))
    assert look_again() == "Show 2 new looks"
    assert where(page) == "epoch 1 · step 10"
    page.get_by_test_id("new-looks").click()
    settled(page)
    assert where(page) == "epoch 1 · step 10"
    assert page.locator("#unit-title").inner_text() == "features.3 · unit 2"
    assert page.locator("#more").inner_text() == ""
    at(page, written, "#/features.3")
    written.write(report(gallery("features.3", seed=3)), Step(epoch=5, global_step=50))
    assert look_again() == "Show 1 new look"
    page.get_by_test_id("new-looks").click()
    settled(page)
    assert where(page) == "epoch 5 · step 50"


@pytest.mark.browser
@pytest.mark.usefixtures("small_blocks")
def test_looks_of_blocks_and_looks_since_are_one_series(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for number in range(3):
        sink.write(report(gallery(seed=number * 10_000), Scalar("n", number)), Step(epoch=number, global_step=number))
        as_before_format_3(tmp_path, max((tmp_path / "looks").iterdir()), version=2)
    sink = PageSink(tmp_path)
    for number in range(3, 10):
        sink.write(report(gallery(seed=number * 10_000), Scalar("n", number)), Step(epoch=number, global_step=number))
    assert len(blocks(tmp_path)) == 2
    page = at(browser_page, sink, "#/features.0?epoch=1")
    assert page.get_by_test_id("epoch-slider").get_attribute("max") == "9"
    assert len(sources(page, "[data-testid=feature-0]")) == 9
    for number in range(10, 13):  # the looks that the page knows go into a block
        sink.write(report(gallery(seed=number * 10_000), Scalar("n", number)), Step(epoch=number, global_step=number))
    assert len(blocks(tmp_path)) == 3
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(80)
    settled(page)
    page.get_by_test_id("new-looks").click()
    settled(page)
    assert where(page) == "epoch 1 · step 1"
    for number in (0, 5, 8, 12):
        page.get_by_test_id("epoch-slider").fill(str(number))
        settled(page)
        assert where(page) == f"epoch {number} · step {number}"
        assert len(sources(page, "[data-testid=feature-0]")) == 9
    at(page, sink, "#/?view=top_patches")
    assert len(page.locator(".stats polyline").get_attribute("points").split()) == 13


@pytest.mark.browser
@pytest.mark.usefixtures("small_blocks")
def test_a_page_of_many_blocks_and_looks_left_out_in_one_file(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path / "page", max_megabytes=0.001)
    for look in range(11):
        items = (gallery(seed=look * 10_000), Scalar("accuracy", float(look)))
        sink.write(report(*items), Step(epoch=look, global_step=look))
    assert len(blocks(tmp_path / "page")) > 2
    alone = tmp_path / "looks.html"
    alone.write_text(bundled_page(sink.path.parent), encoding="utf-8")
    page = browser_page
    for place in (sink.path, alone):
        page.goto("about:blank")
        page.goto(place.as_uri() + "#/?view=top_patches")
        settled(page)
        said = page.locator("#looks .soft").inner_text()
        assert said == "look 2 of 2 · 9 looks left out to keep this page small"
        assert len(page.locator(".stats polyline").get_attribute("points").split()) == 11


@pytest.mark.browser
def test_a_view_that_did_not_look_then_shows_what_it_saw_last(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for look in range(4):
        sink.write(report(gallery(seed=look * 10_000)), Step(epoch=look, global_step=look * 10))
    kernels = Gallery("k", (Row("r", (Tile(pixels(3)),), channel=0),), layer="features.0")
    sink.write(report(kernels, view="filters"), Step(epoch=1, global_step=10))
    page = at(browser_page, sink, "#/features.0?view=filters&epoch=2")
    assert page.locator("#notes").inner_text() == "A note. Seen at epoch 1 · step 10."
    assert page.locator(".tabs a").all_inner_texts() == ["top patches", "filters"]


@pytest.mark.browser
def test_stages_never_share_a_line_and_the_page_opens_at_fits(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for stage, looks in (("fit", 3), ("test", 1), ("validate", 2)):
        for look in range(looks):
            items = (gallery(seed=look * 10_000), Scalar("features.0/purity", float(look), layer="features.0"))
            sink.write(report(*items), Step(epoch=look, global_step=look * 10, stage=stage))
    page = at(browser_page, sink, "#/features.0")
    assert page.locator("#series a").all_inner_texts() == ["fit", "validate", "test"]
    assert where(page) == "epoch 2 · step 20"
    assert len(page.locator(".spark polyline").get_attribute("points").split()) == 3
    page.get_by_test_id("series-validate").click()
    settled(page)
    assert where(page) == "epoch 1 · step 10"
    assert len(page.locator(".spark polyline").get_attribute("points").split()) == 2
    assert page.url.endswith("#/features.0?stage=validate&run=1")
    at(page, sink, "#/features.0/1?epoch=0&stage=validate")
    assert where(page) == "epoch 0 · step 0"
    assert page.get_by_test_id("series-validate").get_attribute("aria-current") == "true"


@pytest.mark.browser
def test_two_runs_stand_beside_each_other_and_what_changed_is_found(tmp_path: Path, browser_page: Any) -> None:
    for run, seed in (("one", 0), ("two", 5_000)):
        same, other = gallery("same", features=2), gallery("other", features=8, seed=seed)
        PageSink(tmp_path).write(report(same, other), Step(epoch=1, global_step=10, run=run))
    sink = PageSink(tmp_path)
    page = at(browser_page, sink)
    assert page.locator("#series a").all_inner_texts() == ["run 2 · fit", "run 1 · fit"]
    page.get_by_test_id("pin-a").click()
    settled(page)
    assert "Pin a look as A" in page.locator("main").inner_text()
    page.get_by_test_id("series-fit").click()
    settled(page)
    page.get_by_test_id("pin-b").click()
    settled(page)
    page.locator(".pair").first.wait_for()
    settled(page)
    assert page.locator("main h3").all_inner_texts() == ["same · mean overlap 1.00", "other · mean overlap 0.00"]
    assert page.locator(".pair").count() == 2 + 6
    assert len(sources(page, ".pairs:first-of-type .pair:first-child")) == 2 * 18


@pytest.mark.browser
def test_a_class_finds_the_units_that_it_drives(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    known = [facts("conv1", units=4), facts("conv2", units=40, classes=("white wolf, Arctic wolf", "goldfish"))]
    sink.write(report(gallery("conv1"), known=known), Step(epoch=1, global_step=10))
    page = at(browser_page, sink)
    page.keyboard.press("/")
    page.keyboard.type("Goldfish")
    page.wait_for_timeout(80)
    settled(page)
    assert page.get_by_test_id("count").inner_text() == "44 units"
    rows = page.locator("tbody tr").all_inner_texts()
    assert words(rows[0]) == "conv2 · 1 goldfish 0.8875 1"
    shares = [float(words(row).split(" goldfish ")[1].split()[0]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    page.get_by_test_id("search").fill("arctic")
    page.wait_for_timeout(80)
    settled(page)
    assert page.get_by_test_id("count").inner_text() == "40 units"
    page.get_by_test_id("sort").select_option("maximum")
    settled(page)
    assert page.locator("tbody th").first.inner_text() == "conv2 · 39"
    page.get_by_test_id("only").select_option("dead")
    settled(page)
    assert words(page.locator("tbody").inner_text()) == "conv2 · 39 white wolf, Arctic wolf 0.1 39 dead"
    at(page, sink, "#/?q=conv1 2")
    assert page.locator("tbody th").all_inner_texts() == ["conv1 · 2"]
    with page.expect_download() as saved:
        page.get_by_test_id("save-units.csv").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0].startswith("layer,unit,class,selectivity")
    assert lines[1].startswith("conv1,2,cat,0.65,2")


@pytest.mark.browser
def test_units_least_like_their_counterparts_come_first(tmp_path: Path, browser_page: Any) -> None:
    known = LayerFacts(
        layer="conv1", channels={"same channel r": (0.5, math.nan, -0.25), "best match r": (0.5, 0.125, 0.75)}
    )
    sink = PageSink(tmp_path)
    sink.write(report(gallery("conv1"), known=[known]), Step(epoch=0, global_step=0, stage="validate"))
    page = at(browser_page, sink, "#/?q=")
    assert words(page.locator("thead").inner_text()) == "patch unit same channel r best match r state"
    assert [words(row) for row in page.locator("tbody tr").all_inner_texts()] == [
        "conv1 · 2 -0.25 0.75",
        f"conv1 · 1 {NOT_MEASURED} 0.125",
        "conv1 · 0 0.5 0.5",
    ]


@pytest.mark.browser
def test_other_items_have_their_own_place(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    curve = Curve(
        "rotation",
        (
            Series("conv", x=(0.0, 90.0), y=(0.0, 1.0), low=(0.0, 0.9), high=(0.1, 1.0)),
            Series("gap", x=(0.0, 90.0), y=(math.nan, 0.5)),
        ),
        x_label="degrees",
        y_label="distance",
    )
    table = Table("layers", ("layer", "tile", "share"), (("conv", Tile(pixels(3)), 0.123456), ("b", None, math.nan)))
    sink.write(report(gallery("conv")), Step(epoch=1, global_step=10))
    items = (Picture("map", pixels(1, 20), caption="A map."), curve, table, Scalar("mean", 2.0))
    sink.write(report(*items, view="other"), Step(epoch=1, global_step=10))
    page = at(browser_page, sink, "#/?view=other")
    assert page.locator("main .figure > img").get_attribute("alt") == "map: A map."
    assert page.locator(".chart circle").count() == 3
    assert page.locator(".chart circle title").first.text_content() == "conv\ndegrees 0: 0"
    assert page.locator("thead th").all_inner_texts() == ["layer", "tile", "share"]
    rows = [words(text) for text in page.locator("tbody tr").all_inner_texts()]
    assert rows == ["conv 0.1235", f"b {NOT_MEASURED} {NOT_MEASURED}"]
    assert words(page.locator(".stats").inner_text()) == "mean 2"
    with page.expect_download() as saved:
        page.get_by_test_id("save-rotation.csv").click()
    assert Path(saved.value.path()).read_text().splitlines()[:2] == [
        "series,degrees,distance,low,high",
        "conv,0,0,0,0.1",
    ]
    with page.expect_download() as saved:
        page.get_by_test_id("save-rotation.svg").click()
    assert "<polyline" in Path(saved.value.path()).read_text()
    with page.expect_download() as saved:
        page.get_by_test_id("save-rotation.png").click()
    with Image.open(saved.value.path()) as chart:
        assert chart.size == (1920, 960)
        colors = chart.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 20
    page.locator("tbody a").click()
    settled(page)
    assert page.locator("main h2").inner_text() == "conv"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_is_lines_in_the_colors_of_the_theme(scheme: str, tmp_path: Path, browser_page: Any) -> None:
    with new_figure(2, 1) as figure:
        figure.add_subplot().plot([0, 1], [0, 1])
        shown = Picture("lines", figure_pixels(figure), caption="Lines.", svg=figure_svg(figure))
    sink = PageSink(tmp_path)
    sink.write(report(shown, view="other"), Step(epoch=1, global_step=10))
    browser_page.emulate_media(color_scheme=scheme)
    page = at(browser_page, sink, "#/?view=other")
    image = page.locator("main .figure > img")
    assert image.get_attribute("src").startswith("data:image/svg+xml;base64,")
    assert image.get_attribute("width") == str(shown.pixels.shape[2])  # it is narrow
    with page.expect_download() as saved:
        page.get_by_test_id("save-lines.svg").click()
    assert Path(saved.value.path()).read_text() == shown.svg
    with page.expect_download() as saved:
        page.get_by_test_id("save-lines.png").click()
    with Image.open(saved.value.path()) as picture:
        assert picture.size == (3 * 192, 3 * 96)
        paper = picture.convert("RGB").getpixel((3, 3))
    assert paper == ((255, 255, 255) if scheme == "light" else (28, 30, 34))


@pytest.mark.browser
@pytest.mark.parametrize(
    ("image", "box", "offset", "side", "error"),
    [
        (28, (5, 8, 17, 20), (0, 0), 0, 0),
        (28, (0, 16, 9, 28), (3, 0), 12, 0),
        (100, (11, 32, 51, 72), (0, 0), 0, 6),
        (100, (70, 0, 100, 35), (0, 5), 40, 6),
    ],
)
def test_a_crop_shows_the_pixels_of_the_patch(
    image: int,
    box: tuple[int, int, int, int],
    offset: tuple[int, int],
    side: int,
    error: int,
    tmp_path: Path,
    browser_page: Any,
) -> None:
    sink, plain = PageSink(tmp_path), cut(smooth(image), box, offset, side)
    tile = Tile(plain.pixels, source=plain.source, shows="patch", rank=0)
    sink.write(report(Gallery("conv", (Row("", (tile,), channel=0),), layer="conv")), Step(epoch=1, global_step=10))
    page = at(browser_page, sink, "#/conv/0")
    window = {key: round(value) for key, value in page.locator("[data-testid=patch-0] .crop").bounding_box().items()}
    scale = round(160 / tile.pixels.shape[1])
    assert (window["height"], window["width"]) == tuple(scale * length for length in tile.pixels.shape[1:])
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=window))).convert("RGB"))
    shown = torch.from_numpy(shot[scale // 2 :: scale, scale // 2 :: scale].copy()).permute(2, 0, 1)
    difference = (shown.int() - tile.pixels.int()).abs()
    assert int(difference.max()) <= error


@pytest.mark.browser
def test_missing_files_are_said(tmp_path: Path, browser_page: Any, page_problems: list[str]) -> None:
    sink, page = PageSink(tmp_path), browser_page
    for look in range(3):
        sink.write(report(gallery(seed=look * 10_000)), Step(epoch=look, global_step=look * 10))
    min((tmp_path / "parts").iterdir()).unlink()
    at(page, sink, "#/features.0?epoch=0")
    assert "A file of this look is missing: reload the page." in page.locator("main").inner_text()
    assert page.locator("#more").inner_text() == ""
    at(page, sink, "#/features.0?epoch=1")
    assert len(sources(page, "[data-testid=feature-0]")) == 9
    min((tmp_path / "looks").iterdir()).unlink()
    at(page, sink)
    assert page.get_by_test_id("epoch-slider").get_attribute("max") == "1"
    assert page.locator("#more").inner_text() == "A file of this page is missing."
    (tmp_path / "looks.js").unlink()
    page.reload()
    settled(page)
    assert "This page has nothing to show yet" in page.locator("main").inner_text()
    assert all("ERR_FILE_NOT_FOUND" in problem for problem in page_problems)
    page_problems.clear()


@pytest.mark.browser
def test_pictures_are_forgotten_when_there_are_too_many(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for look in range(12):
        sink.write(report(gallery(seed=look * 10_000)), Step(epoch=look, global_step=look * 10))
    page = at(browser_page, sink, "#/features.0/1")
    page.evaluate("mostCharacters = 50_000")
    for look in [*range(12), 0, 5, 11]:
        page.get_by_test_id("epoch-slider").fill(str(look))
        settled(page)
        page.wait_for_timeout(150)
        settled(page)
        assert all(sources(page, ".rank"))
        for _ in range(50):  # what is shown is loaded before what is not is forgotten
            held = page.evaluate("[characters, [...pictures.values()].reduce((sum, each) => sum + each.uri.length, 0)]")
            if held[0] <= 140_000:
                break
            page.wait_for_timeout(100)
        assert held[0] == held[1] <= 140_000


@pytest.mark.browser
@pytest.mark.parametrize(
    ("items", "text"),
    [
        ((), "Choose a layer."),
        ((Gallery("g", ()),), "This gallery has no rows at this look."),
        ((Table("t", ("a",), ()),), "This table has no rows."),
        ((Gallery("g", (Row("dead", ()),)),), "dead"),
        ((Curve("c", (Series("s", x=(1.0,), y=(math.nan,)),), x_label="x", y_label="y"),), "Nothing was measured."),
    ],
)
def test_nothing_to_show_is_said(items: tuple[Item, ...], text: str, tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(*items), Step(epoch=0, global_step=0))
    page = at(browser_page, sink)
    assert text in page.locator("main").inner_text()


@pytest.mark.browser
def test_left_out_looks_are_counted_and_their_scalars_stay(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.001)
    for look in range(6):
        items = (gallery(seed=look * 10_000), Scalar("accuracy", float(look)))
        sink.write(report(*items), Step(epoch=look, global_step=look))
    page = at(browser_page, sink, "#/?view=top_patches")
    said = page.locator("#looks .soft").inner_text()
    assert said == "look 2 of 2 · 4 looks left out to keep this page small"
    assert len(page.locator(".stats polyline").get_attribute("points").split()) == 6


@pytest.mark.browser
def test_two_monitors_of_one_view_are_two_views(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for name in ("", "teacher", "student"):
        items = (Gallery("conv", (Row("", (Tile(pixels(1)),), {f"of {name}": 1}, channel=0),), layer="conv"),)
        sink.write(Report("top_patches", title="Top-9", items=items, name=name), Step(epoch=1, global_step=10))
    page = at(browser_page, sink, "#/conv")
    labels = ["top patches", "top patches · teacher", "top patches · student"]
    assert page.locator(".tabs a").all_inner_texts() == labels
    page.get_by_test_id("view-top_patches/teacher").click()
    settled(page)
    for _ in range(2):
        assert words(page.get_by_test_id("feature-0").inner_text()) == "unit 0 of teacher 1"
        page.reload()
        settled(page)


@pytest.mark.browser
def test_hostile_text_is_only_text(tmp_path: Path, browser_page: Any) -> None:
    evil = HOSTILE + "\u202eright to left\u202c" + "long" * 80
    tile = Tile(pixels(0), evil, {evil: evil, "label": evil, "file": evil}, shows="patch", rank=0)
    shown = Gallery(evil, (Row(evil, (tile,), {evil: 1.5}, channel=3),), caption=evil, layer=evil)
    curve = Curve(evil, (Series(evil, x=(0.0, 1.0), y=(0.0, 1.0)),), x_label=evil, y_label=evil, caption=evil)
    table = Table(evil, (evil,), ((evil,), ("\ud800",)))
    known = LayerFacts(
        layer=evil, numbers={"type": evil, "kind": "conv"}, channels={evil: (evil,) * 4}, classes=(((evil, 0.5),),) * 4
    )
    items = (shown, Picture(evil, pixels(1), caption=evil), curve, table, Scalar(f"{evil}/{evil}", 1.0, layer=evil))
    sink = PageSink(tmp_path)
    for number in range(2):
        step = Step(epoch=1, global_step=number, stage=evil, network=evil, data=evil)
        sink.write(Report(evil, title=evil, items=items, notes=(evil,), facts=(known,)), step)
    page = browser_page
    for width in (375, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for place in ("", f"#/{quote(evil, safe='')}", f"#/{quote(evil, safe='')}/3", "#/?q=right", "#/?view=none&q="):
            at(page, sink, place)
            assert page.locator("h1").text_content() == evil
            assert page.evaluate("document.documentElement.scrollWidth") <= width, place
            assert page.evaluate("window.hacked") is None
            assert page.locator("script:not([src])").count() == 1
            assert page.locator("[onerror]").count() == 0
    at(page, sink, f"#/{quote(evil, safe='')}/3")
    assert page.locator("#unit-title").text_content() == f"{evil} · unit 3"


@pytest.mark.browser
def test_the_policy_holds_and_the_watch_can_fail(
    written: PageSink, browser_page: Any, page_problems: list[str]
) -> None:
    page = at(browser_page, written)
    assert page_problems == []
    page.evaluate("""() => {
      document.body.setAttribute("style", "color: red");
      document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/a.png" }));
    }""")
    while not page.evaluate("document.images[document.images.length - 1].complete"):
        page.wait_for_timeout(10)
    refused = {
        "script.textContent = 'window.hacked = 1'": "TrustedScript",
        "script.src = 'looks.js'": "TrustedScriptURL",
        "document.body.innerHTML = '<img src=x>'": "TrustedHTML",
        "trustedTypes.createPolicy('other', {})": "trusted-types",
        "trustedTypes.createPolicy('cnnviz', {})": "trusted-types",
        **dict.fromkeys(
            [
                f"load('{file}')"
                for file in ("http://127.0.0.1:9/a.js", "../a.js", "looks/../../a.js", "a.js", "looks/A")
            ],
            "no file of this page",
        ),
    }
    for statement, word in refused.items():
        attempt = f"const script = document.createElement('script'); return {statement}"
        said = page.evaluate(
            f"async () => {{ try {{ await (async () => {{ {attempt} }})() }} catch (e) {{ return String(e) }} }}"
        )
        assert said is not None, statement
        assert word in said + "".join(page_problems), statement
    assert page.evaluate("window.hacked") is None
    for word in ("style-src", "img-src"):
        assert any(word in problem for problem in page_problems), word
    assert [problem for problem in page_problems if problem.startswith("request") and "a.png" not in problem] == []
    page_problems.clear()
    page.evaluate("setTimeout(() => { throw new Error('provoked') })")
    page.wait_for_timeout(50)
    assert page_problems == ["error: provoked"]
    page_problems.clear()


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 768, 1600])
def test_nothing_sticks_out_of_the_window(written: PageSink, width: int, browser_page: Any) -> None:
    page = browser_page
    page.set_viewport_size({"width": width, "height": 800})
    for place in ("", "#/features.0", "#/features.3/1", "#/?q=cat"):
        at(page, written, place)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place


@pytest.mark.browser
def test_the_keyboard_alone_is_enough(written: PageSink, browser_page: Any) -> None:
    page = at(browser_page, written)
    focused = "document.activeElement.dataset.testid ?? document.activeElement.id"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "main"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.get_by_test_id("layer-features.0").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "layer-features.3"
    page.keyboard.press("Enter")
    settled(page)
    assert page.locator("main h2").inner_text() == "features.3"
    page.get_by_test_id("feature-0").focus()
    page.keyboard.press("Enter")
    settled(page)
    page.locator("#main").focus()
    page.keyboard.press("ArrowDown")
    settled(page)
    assert page.locator("#unit-title").inner_text() == "features.3 · unit 1"
    page.keyboard.press("ArrowLeft")
    settled(page)
    assert where(page) == "epoch 1 · step 10"
    page.keyboard.press("Escape")
    settled(page)
    assert page.locator("main h2").inner_text() == "features.3"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(written: PageSink, scheme: str, browser_page: Any) -> None:
    Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

    def violations() -> list[str]:
        found = Axe().run(page).response["violations"]
        return [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]

    page = browser_page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    for place in ("", "#/features.0", "#/features.3/1?epoch=1", "#/?q=cat"):
        at(page, written, place)
        assert violations() == [], place
    page.evaluate("document.querySelector('h1').style.color = 'color-mix(in srgb, var(--paper) 80%, var(--ink))'")
    assert "color-contrast: <h1" in violations()[0]


@pytest.mark.browser
@pytest.mark.slow
def test_three_thousand_units_in_one_layer_are_quick(tmp_path: Path, browser_page: Any) -> None:
    sink, images = PageSink(tmp_path), [smooth(64).roll(shift, 2) for shift in range(60)]

    def tile(unit: int, rank: int) -> Tile:
        at = (unit * 9 + rank * 7) % 60
        plain = cut(images[at], (0, unit % 20, 40, unit % 20 + 40))
        numbers = {"activation": 9.0 - rank, "dataset index": at, "label": f"class {at}", "row": 1, "column": 2}
        return Tile(plain.pixels, "9", numbers, source=plain.source, shows="patch", rank=rank)

    rows = tuple(Row(f"feature {n}", tuple(tile(n, rank) for rank in range(9)), channel=n) for n in range(3000))
    known = facts("conv", units=3000, classes=("class 1", "class 2"))
    sink.write(report(Gallery("conv", rows, layer="conv"), known=[known]), Step(epoch=1, global_step=10))
    page = browser_page
    page.goto(sink.path.as_uri())
    settled(page)
    page.reload()
    painted = page.evaluate(
        "new Promise((done) => new PerformanceObserver((list) => done(list.getEntries()[0].startTime))"
        ".observe({ type: 'paint', buffered: true }))"
    )
    assert painted < 1000
    at(page, sink, "#/conv")
    assert page.locator(".feature").count() == 3000
    assert page.locator(".feature img").count() < 1500
    at(page, sink, "#/conv/0")
    # As the page itself counts: from the key to the pictures in the document.
    timed = """async (unit) => {
      const began = performance.now(), title = () => document.getElementById("unit-title")?.textContent ?? "";
      go({ unit });
      while (waiting || pending || !title().endsWith(`unit ${unit}`)) await new Promise((done) => setTimeout(done));
      return performance.now() - began;
    }"""
    times = sorted(page.evaluate(timed, unit) for unit in range(100, 3000, 290))
    assert times[len(times) // 2] < 100, times
    search = "() => { const began = performance.now(); state.q = 'class 1'; draw(); return performance.now() - began; }"
    assert min(page.evaluate(search) for _ in range(3)) < 200
    used = page.evaluate("performance.memory?.usedJSHeapSize ?? 0")
    assert used < 400e6


@pytest.mark.browser
@pytest.mark.slow
def test_sixty_epochs_are_there_and_the_slider_is_quick(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    for epoch in range(60):
        items = [gallery(f"layer{n}", features=40, seed=1000 * epoch + 100 * n, side=40) for n in range(3)]
        known = [facts(f"layer{n}", units=40) for n in range(3)]
        sink.write(
            report(*items, Scalar("dead", epoch / 60, layer="layer0"), known=known),
            Step(epoch=epoch, global_step=10 * epoch),
        )
    assert steps(sink) == [10 * epoch for epoch in range(60)]
    page = at(browser_page, sink, "#/layer0")
    assert page.get_by_test_id("epoch-slider").get_attribute("max") == "59"
    # From the slider's event to the pictures in the document; each look is loaded from the disk then.
    timed = """async (look) => {
      const slider = document.querySelector("[data-testid=epoch-slider]"), began = performance.now();
      slider.value = look;
      slider.dispatchEvent(new Event("input"));
      do await new Promise((done) => setTimeout(done)); while (waiting || pending);
      return performance.now() - began;
    }"""
    shown, times = set(), []
    for look in [*range(0, 60, 3), *range(59, 0, -7)]:
        times.append(page.evaluate(timed, look))
        settled(page)
        assert where(page) == f"epoch {look} · step {10 * look}"
        shown.add(tuple(sources(page, "[data-testid=feature-0]")))
    assert len(shown) == len({*range(0, 60, 3), *range(59, 0, -7)})
    times.sort()
    print(f"the slider moves in {times[len(times) // 2]:.0f} ms (median), {times[-1]:.0f} ms at most")
    assert times[len(times) // 2] < 100, times
