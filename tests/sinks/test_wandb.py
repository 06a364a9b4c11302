import json
import math
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from PIL import Image
from sinks.harness import Harness, full_disk
from sinks.offline_run import (
    keep_wandb_inside,
    read_offline_artifacts,
    read_offline_config,
    read_offline_run,
)
from torch.utils.data import DataLoader, IterableDataset

from lightning_cnnviz.callbacks import CorrelationMonitor
from lightning_cnnviz.render.panel import draw_panel
from lightning_cnnviz.report import Curve, Gallery, Item, Picture, Report, Row, Scalar, Series, Step, Table, Tile
from lightning_cnnviz.sinks import _dashboard
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.outlet import Outlet
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink

AXES = ("epoch", "trainer/global_step", "cnnviz/epoch", "cnnviz/legend")
PACKAGES = ["lightning.pytorch.loggers", "pytorch_lightning.loggers"]


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


TILE = Tile(noise(11, 11), "tench")
GALLERY = Gallery(
    "features.3",
    (Row("channel 1", (TILE,) * 9), Row("channel 2", (TILE,) * 9)),
    caption="Strongest first.",
    layer="features.3",
)
CURVE = Curve(
    "distance",
    (Series("layer 1", x=(0.0, 1.0, 2.0), y=(0.0, 1.0, 4.0)),),
    x_label="pixels",
    y_label="distance",
    caption="Rises.",
)
TABLE = Table("layers", ("layer", "patch", "accuracy"), (("conv1", TILE, 0.5), ("conv2", TILE, None)))
PICTURE = Picture("input", noise(20, 40), caption="An image.")
SCALARS = (Scalar("accuracy", 0.25), Scalar("absent", math.nan))
REPORT = Report(
    "top_patches", title="Strongest patches", items=(GALLERY, CURVE, TABLE, PICTURE, *SCALARS), notes=("Seen once.",)
)


class FakeRun:
    """Remembers what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


class WandbLogger:
    """Known by its name, as those of both Lightnings are."""

    def __init__(self, run: Any) -> None:
        self.experiment = run


class OurWandbLogger(WandbLogger):
    pass


class DummyLogger:
    """What `fast_dev_run` puts in place of every logger."""


def write(items: tuple[Item, ...], *loggers: Any) -> None:
    sink = WandbSink()
    sink.open(loggers, Path("unused"))
    sink.write(Report("view", title="Title", items=items), Step(epoch=3, global_step=40))


def keys(sink: Sink, loggers: list[Any]) -> list[str]:
    rows = [row for logger in loggers for row in logger.experiment.rows]
    found = [(key, value) for row in rows for key, value in row.items() if key not in AXES]
    # A report calls its numbers `<view>_stats/...`.
    return [key.replace("/", "_stats/", 1) if isinstance(value, float) else key for key, value in found]


def breaks(patch: pytest.MonkeyPatch, sink: Sink, loggers: list[Any]) -> None:
    for logger in loggers:
        patch.setattr(logger.experiment, "log", full_disk)


HARNESS = Harness(make=WandbSink, loggers=lambda: [WandbLogger(FakeRun())], keys=keys, breaks=breaks)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import wandb

    keep_wandb_inside(tmp_path, monkeypatch)
    wandb.teardown()  # the mode is remembered until then
    yield tmp_path
    wandb.finish()
    wandb.teardown()


@pytest.mark.parametrize("package", PACKAGES)
def test_an_offline_run_holds_everything(package: str, inside: Path) -> None:
    logger = pytest.importorskip(package).WandbLogger(project="test", save_dir=inside, offline=True)
    sink = WandbSink()
    sink.open([logger], inside)
    sink.write(REPORT, Step(epoch=1, global_step=10, logged=(0, 9)))
    logger.log_metrics({"loss": 0.5}, step=11)
    sink.write(REPORT, Step(epoch=2, global_step=20, logged=(1, 19)))
    sink.close()
    logger.experiment.finish()

    rows = read_offline_run(inside)
    ours = [row for row in rows if "top_patches/pictures" in row]
    assert [row.get("loss") for row in rows] == [None, 0.5, None]
    assert [(row["epoch"], row["trainer/global_step"], row["cnnviz/epoch"]) for row in ours] == [(0, 9, 1), (1, 19, 2)]
    for row in ours:
        check_row(row, inside)
    assert "cnnviz/legend" in ours[0]
    assert "cnnviz/legend" not in ours[1]


def check_row(row: dict[str, Any], folder: Path) -> None:
    assert row["top_patches/accuracy"] == 0.25
    assert not any("absent" in key for key in row)
    (files,) = folder.glob("wandb/offline-run-*/files")
    for name, caption, size in [
        ("pictures", "features.3 · Strongest first.", None),
        ("input", "input · An image.", (40, 20)),
    ]:
        logged = row[f"top_patches/{name}"]
        assert logged["caption"] == caption
        with Image.open(files / logged["path"]) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.size == size or (size is None and image.width == 800)
            assert np.asarray(image).std() > 10  # neither black nor blank
    table = json.loads((files / row["top_patches/layers"]["path"]).read_text())
    assert (table["columns"], table["data"]) == (["layer", "accuracy"], [["conv1", 0.5], ["conv2", None]])
    chart = json.loads((files / row["top_patches/distance_table"]["path"]).read_text())
    assert [point[1] for point in chart["data"]] == ["layer 1"] * 3


@pytest.mark.fault(
    "names",
    "names of layers and tables have 400 characters, `..`, markup, line separators or lone surrogates",
    "W&B's run has every table, picture and number",
)
def test_a_run_takes_names_of_any_kind(inside: Path) -> None:
    logger = pytest.importorskip(PACKAGES[0]).WandbLogger(project="test", save_dir=inside, offline=True)
    names = ["</script>\n\"'&/..", "../../up", "of a damaged file \ud800", "\u2028", "..", "n" * 400, "ü" * 399 + "m"]
    items = [item for name in names for item in (Table(name, (name,), ((name,),), caption=name), Scalar(name, 1.0))]
    items += [Picture(f"{name} picture", PICTURE.pixels, caption=name) for name in names]
    sink = WandbSink()
    sink.open([logger], inside)
    sink.write(Report("view", title=names[0], items=tuple(items), name=names[1]), Step(epoch=1, global_step=10))
    logger.experiment.finish()
    (row,) = read_offline_run(inside)
    assert all(re.fullmatch(r"[_a-zA-Z0-9/]+", key) for key in row)
    assert sum("nrows" in value for value in row.values() if isinstance(value, dict)) == len(names) + 1


@pytest.mark.parametrize("prefix", ["", "of a team's own"])
def test_keys_of_tables_leave_room_for_a_long_name_of_the_run(prefix: str, inside: Path) -> None:
    options: dict[str, Any] = {"id": "r" * 64, "prefix": prefix}
    logger = pytest.importorskip(PACKAGES[0]).WandbLogger(project="test", save_dir=inside, offline=True, **options)
    sink = WandbSink()
    sink.open([logger], inside)
    names = ["what is measured of layers", "what is measured of images"]
    items = tuple(Table(name, (name,), ((name,),)) for name in names)
    sink.write(Report("top_patches", title="Patches", items=items), Step(epoch=1, global_step=10))
    logger.experiment.finish()
    (row,) = read_offline_run(inside)
    assert len([key for key, value in row.items() if isinstance(value, dict) and "nrows" in value]) == len(names) + 1


@pytest.mark.parametrize("package", PACKAGES)
def test_a_disabled_run_works(package: str, inside: Path) -> None:
    import wandb

    logger = pytest.importorskip(package).WandbLogger(project="test", save_dir=inside, mode="disabled")
    sink = WandbSink()
    sink.open([logger], inside)
    sink.write(REPORT, Step(epoch=1, global_step=10))
    summary = logger.experiment.summary
    assert (summary["epoch"], summary["trainer/global_step"]) == (1, 10)
    assert isinstance(summary["top_patches/pictures"], wandb.Image)
    assert isinstance(summary["top_patches/layers"], wandb.Table)
    assert summary["top_patches/accuracy"] == 0.25


def test_one_row_a_moment_without_a_step_of_its_own() -> None:
    run = FakeRun()  # whose `log` takes no `step`
    sink = WandbSink()
    sink.open([WandbLogger(run)], Path("unused"))
    step = Step(epoch=3, global_step=40, logged=(2, 39))
    reports = [Report(view, title="Title", items=(CURVE, *SCALARS)) for view in ("one", "two")]
    sink.write_look([sink.encode(report, step) for report in reports], step)
    (row,) = run.rows
    assert set(row) == {*AXES, "one/distance", "one/accuracy", "two/distance", "two/accuracy"}
    assert (row["epoch"], row["trainer/global_step"], row["cnnviz/epoch"]) == (2, 39, 3)


@pytest.mark.parametrize(("height", "width", "kind"), [(1, 7, "png"), (32, 32, "png"), (1, 33, "jpg"), (33, 20, "jpg")])
def test_pictures_keep_every_side_and_tiny_ones_every_bit(height: int, width: int, kind: str) -> None:
    run = FakeRun()
    pixels = noise(height, width)  # of arrays, wandb drops the sides of length 1
    write((Picture("picture", pixels),), WandbLogger(run))
    logged = run.rows[0]["view/picture"]
    assert logged.format == kind
    assert logged.image.size == (width, height)
    if kind == "png":
        assert np.array_equal(np.asarray(logged.image), pixels.permute(1, 2, 0).numpy())


def test_what_is_encoded_is_written_as_it_is(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.loads(pickle.dumps(WandbSink.encode(REPORT, Step(epoch=1, global_step=10))))
    monkeypatch.setattr(_dashboard, "to_image", None)
    monkeypatch.setattr(Image.Image, "load", None)  # neither drawn, nor encoded, nor decoded in this process
    monkeypatch.setattr(Image, "open", None)
    logger = pytest.importorskip(PACKAGES[0]).WandbLogger(project="test", save_dir=inside, offline=True)
    sink = WandbSink()
    sink.open([logger], inside)
    sink.write_encoded(content, Step(epoch=1, global_step=10))
    logger.experiment.finish()
    (row,) = read_offline_run(inside)
    (files,) = inside.glob("wandb/offline-run-*/files")
    logged = files / row["top_patches/pictures"]["path"]
    assert logged.read_bytes() == content.items["top_patches/pictures"][0].content


def test_a_sheet_keeps_the_color_of_every_pixel() -> None:
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    pixels[0, :, ::2], pixels[2, :, 1::2] = 255, 255  # red and blue, column by column
    run = FakeRun()
    write((Picture("picture", pixels),), WandbLogger(run))
    logged = np.asarray(run.rows[0]["view/picture"].image).astype(int)
    assert np.abs(logged - pixels.permute(1, 2, 0).numpy()).mean() < 20  # 89 with halved color resolution


def test_every_run_gets_everything_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Mock(side_effect=draw_panel)
    monkeypatch.setattr(_dashboard, "draw_panel", draw)
    shared, other = FakeRun(), FakeRun()
    write((GALLERY, TABLE), WandbLogger(shared), WandbLogger(shared), OurWandbLogger(other))
    assert [len(run.rows) for run in (shared, other)] == [1, 1]
    assert shared.rows[0]["view/pictures"] is not other.rows[0]["view/pictures"]  # a media object has one run
    assert shared.rows[0]["view/layers"] is not other.rows[0]["view/layers"]
    draw.assert_called_once()


def test_items_of_one_name_do_not_overwrite_each_other() -> None:
    run = FakeRun()
    gallery, same = Gallery("x", GALLERY.rows), Curve("x", CURVE.series, x_label="x", y_label="y")
    write(
        (gallery, same, Picture("x", PICTURE.pixels), Table("x", ("n",), ((1,),)), Scalar("x", 1.0)), WandbLogger(run)
    )
    expected = {"view/x", "view/x_chart", "view/x_table", "view/x_pictures", "view/x_pictures_pictures"}
    assert set(run.rows[0]) - set(AXES) == expected


@pytest.mark.parametrize("items", [(), (Scalar("absent", math.nan),)])
def test_nothing_to_say_is_no_row(items: tuple[Item, ...]) -> None:
    run = FakeRun()
    write(items, WandbLogger(run))
    assert run.rows == []


def test_of_a_long_table_rows_of_all_parts_are_kept_and_that_is_said() -> None:
    run = FakeRun()
    write((Table("long", ("n", "rank"), tuple((n, 1 + n % 2) for n in range(3000))),), WandbLogger(run))
    data = run.rows[0]["view/long"].data
    assert (len(data), data[0], data[-1]) == (250, [0, 1], [2998, 1])
    legend = dict(run.rows[0]["cnnviz/legend"].data)
    assert legend["view/long"] == "Title: 250 of 3,000 rows, all others are in the record. long."


@pytest.mark.parametrize(("loggers", "found"), [([], "none"), ([object()], "object")])
def test_without_a_logger_the_error_names_the_choices(loggers: list[object], found: str) -> None:
    message = (
        rf"no WandbLogger among the trainer's loggers \({found}\).*Trainer\(logger=WandbLogger.*sinks=\[PageSink\(\)\]"
    )
    with pytest.raises(ValueError, match=message):
        WandbSink().open(loggers, Path("unused"))


def test_a_fast_dev_run_is_quiet() -> None:
    write((GALLERY,), DummyLogger())


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_lightnings_own_stand_ins_are_quiet(package: str) -> None:
    loggers = pytest.importorskip(
        "lightning.pytorch.loggers" if package == "lightning" else "pytorch_lightning.loggers"
    )
    logger_module = pytest.importorskip(f"{loggers.__name__}.logger")
    write((GALLERY,), logger_module.DummyLogger())
    write((GALLERY, TABLE, *SCALARS), WandbLogger(logger_module.DummyExperiment()))


def test_open_forgets_the_loggers_of_the_run_before() -> None:
    first, second = FakeRun(), FakeRun()
    sink = WandbSink()
    for run in (first, second):
        sink.open([WandbLogger(run)], Path("unused"))
    sink.write(Report("view", title="Title", items=SCALARS), Step(epoch=1, global_step=1))
    assert (len(first.rows), len(second.rows)) == (0, 1)


def test_the_sink_alone_does_not_load_wandb() -> None:
    import subprocess

    code = "import sys, lightning_cnnviz.sinks.wandb; sys.exit('wandb' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def looked_at(inside: Path, **options: Any) -> dict[str, Any]:
    """Log a look with a page beside it to an offline run, and return the run's config."""
    logger = pytest.importorskip(PACKAGES[0]).WandbLogger(
        project="test", save_dir=inside, offline=True, prefix=options.pop("prefix", "")
    )
    page, sink = PageSink(inside / "page"), WandbSink(record="never", **options)
    outlet = Outlet("Test", [page, sink])
    outlet.open_for([logger], inside)
    outlet.show(REPORT, Step(epoch=1, global_step=10))
    outlet.close()
    logger.experiment.finish()
    return read_offline_config(inside)


@pytest.mark.parametrize(("megabytes", "said"), [(10, False), (0.001, True), (0, None)])
def test_the_page_is_logged_up_to_a_size(megabytes: float, said: bool | None, inside: Path) -> None:
    told = looked_at(inside, page_megabytes=megabytes).get("cnnviz/page")
    assert (None if told is None else "not uploaded" in told) is said
    assert ("cnnviz/page" in {key for row in read_offline_run(inside) for key in row}) is (said is False)
    if told is not None:
        assert Path(told["file"]) == inside / "page" / "index.html"


def test_the_page_stands_behind_the_prefix(inside: Path) -> None:
    looked_at(inside, prefix="run a")
    assert "run_a/cnnviz/page" in {key for row in read_offline_run(inside) for key in row}


def test_a_page_that_cannot_be_logged_costs_nothing_else(inside: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun()
    run.log_artifact = run.config = None  # type: ignore[attr-defined]
    page, sink = PageSink(inside / "page"), WandbSink(record="never")
    outlet = Outlet("Test", [page, sink])
    outlet.open_for([WandbLogger(run)], inside)
    outlet.show(REPORT, Step(epoch=1, global_step=10))
    outlet.close()
    assert len(run.rows) == 1
    (said,) = (entry.message for entry in caplog.records if entry.levelname == "ERROR")
    assert said.startswith("WandbSink: the page is not uploaded, it lies in ")


def test_a_size_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="page_megabytes=-1: give a size in megabytes, or 0"):
        WandbSink(page_megabytes=-1)


def test_splits_are_artifacts_that_equal_runs_share(inside: Path) -> None:
    logger = pytest.importorskip(PACKAGES[0]).WandbLogger(project="test", save_dir=inside, offline=True)
    sink = WandbSink()
    sink.open([logger], inside)
    sink.keep_split("layer_probe/flowers", {"digest": "ab", "splits": [{"train": [3, 5], "test": [1]}]})
    logger.experiment.finish()
    (files,) = read_offline_artifacts(inside)
    assert json.loads(files["split.json"].read_text())["splits"][0] == {"train": [3, 5], "test": [1]}


@pytest.mark.parametrize(
    ("captions", "said"), [(("5 of 8", "3 of 4"), "a: 5 of 8; b: 3 of 4."), (("nine each", "nine each"), "nine each.")]
)
def test_a_sheet_of_several_layers_says_whose_numbers_are_whose(captions: tuple[str, str], said: str) -> None:
    tile = Tile(torch.zeros(3, 4, 4, dtype=torch.uint8))
    galleries = [
        Gallery(layer, (Row("", (tile,), channel=0),), caption=caption, layer=layer)
        for layer, caption in zip("ab", captions, strict=True)
    ]
    ((_, _, text),) = _dashboard._sheets(Report("view", title="A view", items=tuple(galleries)))
    assert text == f"A view. {said}"


class Endless(IterableDataset[Any]):
    """Images whose number nobody knows."""

    def __iter__(self) -> Iterator[Any]:
        yield from dataset(40)


@pytest.mark.parametrize(
    ("loader", "positions"),
    [
        (train_loader, [0.4, 0.8, 1.2, 1.6, 2]),
        (lambda: DataLoader(Endless(), batch_size=8), [0, 0, 1.2, 1.6, 2]),  # nobody knows the first epoch's length
    ],
    ids=["known length", "a stream"],
)
def test_looks_in_the_middle_of_epochs_have_places_of_their_own(loader: Any, positions: list[float]) -> None:
    run, sink = FakeRun(), WandbSink()
    sink.open([WandbLogger(run)], Path("unused"))
    sink.open = lambda loggers, folder: None  # type: ignore[method-assign]
    monitor = CorrelationMonitor(every_n_steps=2, sinks=[sink])
    quiet_trainer(callbacks=[monitor], max_epochs=2).fit(LittleNet(), loader(), val_loader())
    assert [row["cnnviz/epoch"] for row in run.rows] == positions
    assert [type(row["cnnviz/epoch"]) for row in run.rows][-1] is int
    assert [row["trainer/global_step"] for row in run.rows] == [1, 3, 5, 7, 9]
    chart = run.rows[-1]["correlation/redundant_by_depth"].table.data
    expected = [f"epoch {position:g}" for position in positions]
    expected = [name if name not in expected[:place] else f"{name}, step 4" for place, name in enumerate(expected)]
    assert list(dict.fromkeys(line for _, line, _ in chart)) == expected


def test_what_does_not_change_is_there_once_a_run() -> None:
    run, sink = FakeRun(), WandbSink()
    sink.open([WandbLogger(run)], Path("unused"))

    def table(size: int) -> Report:
        items = (Table("layers", ("layer", "rows"), (("conv", size),)), Scalar("parameters", 20.0))
        return Report("layer_table", title="Layers", items=items)

    for stage, size in (("fit", 8), ("validate", 8), ("test", 8), ("test", 9)):
        sink.write(table(size), Step(epoch=1, global_step=10, stage=stage))
    rows = [{key: item.data for key, item in row.items() if key not in AXES} for row in run.rows]
    assert rows == [{"layer_table/layers": [["conv", 8]]}, {"test/layer_table/layers": [["conv", 9]]}]


def test_what_does_not_change_is_not_lost_where_it_could_not_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    run, sink = FakeRun(), WandbSink()
    sink.open([WandbLogger(run)], Path("unused"))
    report = Report("layer_table", title="Layers", items=(TABLE,))
    with monkeypatch.context() as patch:
        patch.setattr(run, "log", full_disk)
        with pytest.raises(OSError, match="No space left"):
            sink.write(report, Step(epoch=0, global_step=0))
    sink.write(report, Step(epoch=0, global_step=0))
    assert "layer_table/layers" in run.rows[0]
