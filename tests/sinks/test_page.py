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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sinks.harness import Harness, full_disk

import lightning_cnnviz.sinks._page_folder as folder_module
import lightning_cnnviz.sinks._page_items as items_module
import lightning_cnnviz.sinks.page as page_module
from lightning_cnnviz.report import (
    Curve,
    Gallery,
    ImageCrop,
    Item,
    Picture,
    Report,
    Row,
    Scalar,
    Series,
    Step,
    Table,
    Tile,
)
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


def called(file: Path) -> list[Any]:
    """The arguments of the one call that a script of the page's folder makes."""
    text = re.fullmatch(r"cnnviz\.\w+\((.*)\);\n", file.read_text(encoding="ascii"), flags=re.DOTALL)
    assert text is not None
    arguments = json.loads(f"[{text[1]}]")
    assert isinstance(arguments, list)
    return arguments


def listed(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The looks of the list, by view and series; each with the names of its items."""
    (content,) = called(folder / "looks.js")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for view in content["views"]:
        for series in view["series"]:
            key = (
                series["stage"]
                + f"~{series['run']}" * (series["run"] > 1)
                + f"~{series['data']}" * bool(series["data"])
            )
            looks = [look | {"names": content["contents"][look["contents"]]} for look in series["looks"]]
            found.setdefault(view["view"], {})[key] = looks
    return found


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
    """What the chunks of a look say."""
    return [item for chunk in look["chunks"] for item in called(folder / "looks" / f"{chunk}.js")[2]["items"]]


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
    assert sorted(name.rpartition("/")[0] for name in files(tmp_path)) == ["", "", *["looks"] * 3, *["pictures"] * 3]
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


@pytest.mark.parametrize("place", range(4))
def test_whichever_file_fails_the_folder_is_whole(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A look's two packs, its chunk, and the list.
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
    assert len(files(tmp_path)) == len(before) + 3
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
    (tmp_path / "index.html").write_text('<meta name="generator" content="lightning_cnnviz page 2">')
    with pytest.raises(ValueError, match=r"page of format 2, of a newer lightning_cnnviz.*knows formats up to 1"):
        PageSink(tmp_path).open([], tmp_path)


def test_the_page_has_nothing_inline_that_its_policy_forbids(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery(), Picture("p", pixels(1), caption=HOSTILE)), Step(epoch=1, global_step=10))
    html = sink.path.read_text(encoding="utf-8")
    assert len(html) < 60_000
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
        assert {tile[0] for row in item["rows"] for tile in row["tiles"]} == pictures.keys()
        assert item["packs"] == [path.stem for path in (tmp_path / "pictures").iterdir()]


def test_writing_what_is_encoded_draws_and_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, step = report(gallery(features=2, tiles=5), Scalar("accuracy", 0.5)), Step(epoch=1, global_step=10)
    PageSink(tmp_path / "whole").write(shown, step)
    content = pickle.loads(pickle.dumps(PageSink.encode(shown, step)))  # as from another process
    for name in ("data_uri", "Pictures", "plain"):
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
        assert [tile[0] for row in item["rows"] for tile in row["tiles"] if tile[0] not in names] == []
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
    assert {*files(tmp_path)} - {*before} - kept == {f"looks/{max((tmp_path / 'looks').glob('*.js')).name}"}
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
            assert {tile[0] for row in item["rows"] for tile in row["tiles"]} <= names
            assert all((tmp_path / "pictures" / f"{pack}.js").exists() for pack in item["packs"])


def test_a_picture_that_is_still_shown_stays(tmp_path: Path) -> None:
    sink = PageSink(tmp_path, max_megabytes=0.03)
    for number in range(8):
        sink.write(report(gallery("same"), gallery(seed=number * 10_000)), Step(epoch=number, global_step=number))
    names = stored(tmp_path).keys()
    for look in listed(tmp_path)["top_patches"]["fit"]:
        for item in items_of(tmp_path, look):
            assert {tile[0] for row in item["rows"] for tile in row["tiles"]} <= names
            assert all((tmp_path / "pictures" / f"{pack}.js").exists() for pack in item["packs"])


def test_an_item_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    before = files(tmp_path)
    with monkeypatch.context() as patch:

        def broken(curve: Curve) -> str:
            raise ArithmeticError("no chart")

        patch.setattr(items_module, "curve_svg", broken)
        bad = report(gallery(seed=77), Curve("c", (), x_label="x", y_label="y"))
        with pytest.raises(ArithmeticError, match="no chart"):
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
    assert shown[0]["rows"][0]["tiles"][0][3] == [
        ["nan", None],
        ["inf", None],
        ["numpy", 0.5],
        ["int", 7],
        ["text", "NaN"],
    ]
    assert shown[0]["rows"][0]["numbers"] == [["7", 1], ["3", 2]]
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
    assert items[0]["rows"][2]["tiles"][0][:2] == [name, [100, 100, 2, 3, 42, 43, 0, 0]]
    assert items[1]["rows"][0][0]["crop"] == [100, 100, 0, 0, 50, 60, 0, 0]


def test_a_tiny_patch_is_kept_without_loss_and_one_of_a_tiny_image_is_cut_from_it(tmp_path: Path) -> None:
    sink = PageSink(tmp_path)
    large, tiny = smooth(100), smooth(28)
    tiles = [cut(image, (n, 0, n + 20, 20)) for image in (large, tiny) for n in range(4)]
    sink.write(report(Gallery("conv", (Row("channel 0", tuple(tiles)),))), Step(epoch=1, global_step=10))
    (item,) = items_of(tmp_path, listed(tmp_path)["top_patches"]["fit"][0])
    assert [crop is None for _, crop, *_ in item["rows"][0]["tiles"]] == [True] * 4 + [False] * 4
    assert [uris[0].partition(";")[0] for uris in stored(tmp_path).values()] == ["data:image/png"] * 5


# --- in a browser ---


def settled(page: Any) -> Any:
    """The page, once everything that it asked for is there and shown."""
    frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 5)))"
    for _ in range(1000):  # wait_for_function would need `eval`, which the page forbids
        page.evaluate(frame)
        if page.evaluate("drawing > 0 && !waiting && pending === 0"):
            break
    page.evaluate(frame)
    return page


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
    settled(page)
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
    settled(page)
    page.get_by_test_id("layer-features.3").click()
    settled(page)
    page.get_by_test_id("feature-1").click()
    settled(page)
    dialog = page.get_by_test_id("dialog")
    assert dialog.locator("h2").inner_text() == "features.3 · channel 1"
    for k in range(9):
        patch = dialog.get_by_test_id(f"patch-{k}")
        image = patch.locator("img").evaluate("i => [i.naturalWidth, i.width, getComputedStyle(i).imageRendering]")
        assert image == [40, 160, "pixelated"]
        text = re.sub(r"\s+", " ", patch.inner_text())
        assert text == f"class {k} activation {float(f'{9.87654 - k:.4g}'):g} image {k}"
    page.get_by_test_id("next-feature").click()
    settled(page)
    assert dialog.locator("h2").inner_text() == "features.3 · channel 2"
    assert page.get_by_test_id("next-feature").is_disabled()
    page.keyboard.press("ArrowUp")
    settled(page)
    page.keyboard.press("ArrowUp")
    settled(page)
    assert dialog.locator("h2").inner_text() == "features.3 · channel 0"
    page.keyboard.press("Escape")
    settled(page)
    assert not dialog.is_visible()
    page.wait_for_selector("[data-testid=feature-0]:focus")
    page.keyboard.press("Enter")
    settled(page)
    assert dialog.is_visible()
    page.get_by_test_id("close").click()
    settled(page)
    assert not dialog.is_visible()


@pytest.mark.browser
def test_tiles_stand_in_the_columns_that_the_report_says(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.open([], tmp_path)
    beside = Gallery("beside", gallery(tiles=18).rows, caption="Projections beside patches.", columns=6)
    sink.write(report(beside, gallery("square", tiles=18)), Step(epoch=1, global_step=10))
    browser_page.goto(sink.path.as_uri())
    settled(browser_page)

    def columns(images: str) -> int:
        lefts = browser_page.eval_on_selector_all(
            images, "is => is.map(i => Math.round(i.getBoundingClientRect().left))"
        )
        return len(set(lefts))

    assert columns("[data-testid=feature-0] img") == 6
    browser_page.get_by_test_id("feature-0").click()
    settled(browser_page)
    assert columns("#patches img") == 6
    browser_page.keyboard.press("Escape")
    settled(browser_page)
    browser_page.get_by_test_id("layer-square").click()
    settled(browser_page)
    assert columns("[data-testid=feature-0] img") == 5


@pytest.mark.browser
def test_the_slider_moves_through_the_looks(written: PageSink, browser_page: Any) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    settled(page)
    label = page.locator("#looks output")
    newest = sources(page, "[data-testid=feature-0]")
    page.get_by_test_id("epoch-slider").fill("0")
    settled(page)
    assert label.inner_text() == "epoch 0 · step 0"
    assert set(sources(page, "[data-testid=feature-0]")).isdisjoint(newest)
    assert page.get_by_test_id("layer-features.0").locator(".stat b").inner_text() == NOT_MEASURED
    page.get_by_test_id("epoch-slider").press("ArrowRight")
    settled(page)
    assert label.inner_text() == "epoch 1 · step 10"
    page.locator("h1").click()
    settled(page)
    page.keyboard.press("ArrowRight")
    settled(page)
    assert sources(page, "[data-testid=feature-0]") == newest

    page.get_by_test_id("feature-0").click()
    settled(page)
    assert sources(page, "#patches") == newest
    page.get_by_test_id("dialog-epoch-slider").fill("1")
    settled(page)
    assert set(sources(page, "#patches")).isdisjoint(newest)
    assert label.inner_text() == "epoch 1 · step 10"
    page.get_by_test_id("strip-2").click()
    settled(page)
    assert sources(page, "#patches") == newest


@pytest.mark.browser
def test_a_reload_keeps_the_place_and_the_newest_moves_on(written: PageSink, browser_page: Any) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    settled(page)
    page.get_by_test_id("layer-features.3").click()
    settled(page)
    written.write(report(gallery("features.3", seed=1)), Step(epoch=3, global_step=30))
    page.reload()
    settled(page)
    assert page.locator("#looks output").inner_text() == "epoch 3 · step 30"
    assert page.locator("main h2").inner_text() == "features.3"
    page.get_by_test_id("epoch-slider").fill("1")
    settled(page)
    page.get_by_test_id("feature-2").click()
    settled(page)
    written.write(report(gallery("features.3", seed=2)), Step(epoch=4, global_step=40))
    page.reload()
    settled(page)
    assert page.locator("#dialog-looks output").inner_text() == "epoch 1 · step 10"
    assert page.locator("#dialog-title").inner_text() == "features.3 · channel 2"
    page.goto(f"{written.path.as_uri()}#view=none&layer=gone&look=9-9-fit")
    settled(page)
    page.reload()
    settled(page)
    assert page.locator("#looks output").inner_text() == "epoch 4 · step 40"


@pytest.mark.browser
def test_features_can_be_filtered(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(
        report(gallery(features=30, tiles=2), gallery("few", features=24, tiles=1)), Step(epoch=1, global_step=10)
    )
    page = browser_page
    page.goto(sink.path.as_uri())
    settled(page)
    page.get_by_test_id("filter").fill("CHANNEL 2")
    settled(page)
    assert feature_list(page) == ["channel 2", *(f"channel {n}" for n in range(20, 30))]
    assert page.get_by_test_id("count").inner_text() == "11 of 30 features"
    page.get_by_test_id("layer-few").click()
    settled(page)
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
    settled(page)
    page.get_by_test_id("view-other").click()
    settled(page)
    assert not page.locator("#layers").is_visible()
    sizes = page.locator("main img").evaluate_all(
        "images => images.map((image) => [image.naturalWidth > 0, image.alt])"
    )
    assert sizes == [[True, "map: A map."], [True, "rotation: "], [True, ""]]
    assert page.locator("th").all_inner_texts() == ["layer name", "tile", "share"]
    assert page.locator("td").all_inner_texts() == ["a", "", "0.1235", "b", NOT_MEASURED, NOT_MEASURED]
    assert re.sub(r"\s+", " ", page.locator(".stats").inner_text()) == "mean 2"


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
    sink, tile = PageSink(tmp_path), cut(smooth(image), box, offset, side)
    sink.write(report(Gallery("conv", (Row("channel 0", (tile,)),))), Step(epoch=1, global_step=10))
    page = browser_page
    page.goto(sink.path.as_uri())
    settled(page)
    page.get_by_test_id("feature-0").click()
    settled(page)
    window = {key: round(value) for key, value in page.locator("#patches .crop").bounding_box().items()}
    scale = round(320 / tile.pixels.shape[1])
    assert (window["height"], window["width"]) == tuple(scale * length for length in tile.pixels.shape[1:])
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=window))).convert("RGB"))
    shown = torch.from_numpy(shot[scale // 2 :: scale, scale // 2 :: scale].copy()).permute(2, 0, 1)
    difference = (shown.int() - tile.pixels.int()).abs()
    assert int(difference.max()) <= error


@pytest.mark.browser
def test_stages_have_sliders_of_their_own_and_the_page_opens_at_fits(tmp_path: Path, browser_page: Any) -> None:
    sink, page = PageSink(tmp_path), browser_page
    for stage, looks in (("fit", 3), ("test", 1), ("validate", 2)):
        for look in range(looks):
            items = (gallery(seed=look * 10_000), Scalar("features.0/purity", float(look)))
            sink.write(report(*items), Step(epoch=look, global_step=look * 10, stage=stage))
    sink.write(report(Scalar("accuracy", 0.5), view="other"), Step(epoch=2, global_step=20, stage="test"))
    page.goto(sink.path.as_uri())
    settled(page)
    label = page.locator("#looks output")
    assert page.locator("#series button").all_inner_texts() == ["fit", "validate", "test"]
    assert label.inner_text() == "epoch 2 · step 20"
    assert len(page.locator("#layers polyline").get_attribute("points").split()) == 3
    page.get_by_test_id("series-validate").click()
    settled(page)
    assert label.inner_text() == "epoch 1 · step 10 · validate"
    assert len(page.locator("#layers polyline").get_attribute("points").split()) == 2
    page.keyboard.press("ArrowLeft")
    settled(page)
    page.get_by_test_id("view-other").click()
    settled(page)
    assert label.inner_text() == "epoch 2 · step 20 · test"
    assert not page.locator("#series").is_visible()
    page.get_by_test_id("view-top_patches").click()
    settled(page)
    assert label.inner_text() == "epoch 0 · step 0 · validate"
    page.goto(f"{sink.path.as_uri()}#look=0-0-test")  # as links were before there were series
    page.reload()
    settled(page)
    assert label.inner_text() == "epoch 0 · step 0 · test"


@pytest.mark.browser
def test_two_runs_stand_beside_each_other(tmp_path: Path, browser_page: Any) -> None:
    page = browser_page
    for seed in (0, 5_000):
        sink = PageSink(tmp_path)
        for look in (1, 2):
            sink.write(report(gallery(seed=seed + look)), Step(epoch=look, global_step=look * 10))
    page.goto(sink.path.as_uri())
    settled(page)
    newest = sources(page, "[data-testid=feature-0]")
    assert page.locator("#series button").all_inner_texts() == ["run 1 · fit", "run 2 · fit"]
    assert page.get_by_test_id("series-fit~2").get_attribute("aria-pressed") == "true"
    page.get_by_test_id("series-fit").click()
    settled(page)
    assert set(sources(page, "[data-testid=feature-0]")).isdisjoint(newest)


@pytest.mark.browser
def test_left_out_looks_are_counted_and_their_scalars_stay(tmp_path: Path, browser_page: Any) -> None:
    thinned(tmp_path, 6, 0.001)
    page = browser_page
    page.goto((tmp_path / "index.html").as_uri())
    settled(page)
    said = page.locator("#looks .soft").inner_text()
    assert said == "look 2 of 2 · 4 looks left out to keep this page small"
    page.get_by_test_id("layer-overview").click()
    settled(page)
    assert len(page.locator(".stats polyline").get_attribute("points").split()) == 6


@pytest.mark.browser
def test_a_look_is_loaded_when_it_is_asked_for(tmp_path: Path, browser_page: Any) -> None:
    sink, page, asked = PageSink(tmp_path), browser_page, []
    for look in range(30):
        sink.write(report(gallery(seed=look * 10_000)), Step(epoch=look, global_step=look * 10))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(sink.path.as_uri())
    settled(page)
    page.wait_for_timeout(300)
    settled(page)
    assert len(asked) == 2 + 2 * 2  # the page, the list; and of two looks the look and its pictures
    page.get_by_test_id("epoch-slider").fill("3")
    settled(page)
    assert page.locator("#looks output").inner_text() == "epoch 3 · step 30"
    assert len(sources(page, "[data-testid=feature-0]")) == 9
    page.get_by_test_id("feature-0").click()
    settled(page)
    page.get_by_test_id("strip-0").locator("img").first.wait_for()
    assert len(asked) < 2 + 2 * 30


@pytest.mark.browser
def test_a_file_that_is_missing_is_said(tmp_path: Path, browser_page: Any, page_problems: list[str]) -> None:
    sink, page = PageSink(tmp_path), browser_page
    for look in range(3):
        sink.write(report(gallery(seed=look * 10_000)), Step(epoch=look, global_step=look * 10))
    min((tmp_path / "looks").iterdir()).unlink()
    page.goto(sink.path.as_uri())
    settled(page)
    page.get_by_test_id("epoch-slider").fill("0")
    settled(page)
    assert "A file of this look is missing: reload the page." in page.locator("#notes").inner_text()
    page.get_by_test_id("epoch-slider").fill("1")
    settled(page)
    assert len(sources(page, "[data-testid=feature-0]")) == 9
    (tmp_path / "looks.js").unlink()
    page.reload()
    settled(page)
    assert "This page has nothing to show yet" in page.locator("main").inner_text()
    assert all("ERR_FILE_NOT_FOUND" in problem for problem in page_problems)
    page_problems.clear()


@pytest.mark.browser
def test_pictures_are_forgotten_when_there_are_too_many(tmp_path: Path, browser_page: Any) -> None:
    sink, page = PageSink(tmp_path), browser_page
    for look in range(12):
        sink.write(report(gallery(seed=look * 10_000), gallery("same")), Step(epoch=look, global_step=look * 10))
    page.goto(sink.path.as_uri())
    settled(page)
    page.evaluate("mostCharacters = 50_000")
    for look in [*range(12), 0, 5, 11]:
        page.get_by_test_id("epoch-slider").fill(str(look))
        settled(page)
        page.wait_for_timeout(150)
        settled(page)
        assert all(sources(page, "[data-testid=feature-0]"))
        held = page.evaluate("[characters, [...pictures.values()].reduce((sum, each) => sum + each.uri.length, 0)]")
        assert held[0] == held[1] <= 110_000


@pytest.mark.browser
def test_one_feature_seen_by_two_views_is_shown_side_by_side(tmp_path: Path, browser_page: Any) -> None:
    sink = PageSink(tmp_path)
    sink.write(report(gallery()), Step(epoch=1, global_step=10))
    sink.write(report(gallery(seed=500, tiles=4), view="deconvnet"), Step(epoch=1, global_step=10))
    page = browser_page
    page.goto(sink.path.as_uri())
    settled(page)
    page.get_by_test_id("feature-1").click()
    settled(page)
    assert len(sources(page, "[data-testid=same-deconvnet]")) == 4


@pytest.mark.browser
def test_features_of_one_caption_stay_apart(tmp_path: Path, browser_page: Any) -> None:
    rows = tuple(Row("", (Tile(pixels(n), f"tile {n}"),)) for n in range(3))
    sink = PageSink(tmp_path)
    sink.write(report(Gallery("kernels", rows)), Step(epoch=1, global_step=10))
    page = browser_page
    page.goto(sink.path.as_uri())
    settled(page)
    page.get_by_test_id("feature-1").click()
    settled(page)
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
    settled(browser_page)
    assert text in browser_page.locator("main").inner_text()


@pytest.mark.browser
def test_two_monitors_of_one_view_are_two_views(tmp_path: Path, browser_page: Any) -> None:
    sink, page = PageSink(tmp_path), browser_page
    for name, caption in (("", "of nobody"), ("teacher", "of the teacher"), ("student", "of the student")):
        items = (Gallery("conv", (Row(caption, (Tile(pixels(1)),)),)),)
        sink.write(Report("top_patches", title="Top-9", items=items, name=name), Step(epoch=1, global_step=10))
    page.goto(sink.path.as_uri())
    settled(page)
    labels = page.locator("#views button").all_inner_texts()
    assert labels == ["top patches", "top patches · teacher", "top patches · student"]
    page.get_by_test_id("view-top_patches/teacher").click()
    settled(page)
    for _ in range(2):
        assert page.locator("h1").inner_text() == "Top-9 · teacher"
        assert page.get_by_test_id("feature-0").inner_text() == "of the teacher"
        page.reload()
        settled(page)


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
    settled(page)
    assert page.locator("h1").text_content() == "Title of top_patches"
    page.get_by_test_id(f"view-{HOSTILE}").click()
    settled(page)
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator("main h2").text_content() == HOSTILE
    page.get_by_test_id("feature-0").click()
    settled(page)
    assert page.get_by_test_id("patch-0").locator("strong").text_content() == HOSTILE
    page.get_by_test_id("dialog-epoch-slider").fill("0")
    settled(page)
    page.reload()
    settled(page)
    assert page.locator("#dialog-title").text_content() == f"{HOSTILE} · {HOSTILE}"
    assert page.locator("#looks output").text_content() == f"epoch 1 · step 0 · {HOSTILE}"
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    assert page.locator("[onerror]").count() == 0


@pytest.mark.browser
def test_the_policy_holds_and_the_watch_can_fail(
    written: PageSink, browser_page: Any, page_problems: list[str]
) -> None:
    page = browser_page
    page.goto(written.path.as_uri())
    settled(page)
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
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_window(written: PageSink, width: int, browser_page: Any) -> None:
    page = browser_page
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(written.path.as_uri())
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_test_id("feature-0").click()
    settled(page)
    assert page.evaluate("document.getElementById('dialog').scrollWidth") <= width
