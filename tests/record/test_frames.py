"""Data frames over all looks: every view, its numbers and whose they are."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from record.examples import loader, measured, network

import lightning_cnnviz as cnnviz
from lightning_cnnviz import report
from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.record import frames
from lightning_cnnviz.record.identity import DataIdentity, LookIdentity
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.views import VIEW_NAMES, Seen

WITHOUT_SCALARS = ("deconvnet", "activation_maps", "attribution")
IDENTITY = ["run", "view", "name", "stage", "dataset", "loader", "epoch", "global_step", "time"]
PIXELS = tuple(torch.full((3, 8, 8), level, dtype=torch.uint8) for level in (90, 200))
DISPLAY = Display(
    pixels=PIXELS,
    indices=(7, 9),
    labels=(0, 2),
    class_names=("hen", "jay", "kite"),
    files={0: "a.png", 1: "b\udcff.png"},
    examples=dict.fromkeys(("rotation", "brightness"), ((PIXELS[0],) * 3,) * 2),
)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What each view has found, by the view."""
    made = measured()
    kinds = {type(part[0] if isinstance(part, (tuple, list)) else part).__name__: part for part in made}
    patches = cnnviz.mine_top_patches(network(), loader(), layers=["0"], k=2, features=[1, 3])
    images = {index: loader().dataset[index][0] for index in patches.shown_images()}
    units = [
        cnnviz.Unit(int(layer.images[place]), layer.layer, place[0], int(layer.rows[place]), int(layer.columns[place]))
        for layer in patches
        for place in itertools.product(layer.features, range(2))
    ]
    online = {"accuracy": torch.tensor([0.25, 0.5]).double(), "left_out": torch.tensor([0, 1])}
    return {
        "top_patches": kinds["TopPatches"],
        "layer_table": kinds["LayerTable"],
        "filters": kinds["LayerFilters"],
        "correlation": kinds["ChannelCorrelation"],
        "comparison": kinds["UnitComparison"],
        "activation_maps": kinds["ActivationMaps"],
        "layer_probe": kinds["LayerProbe"],
        "invariance": kinds["InvarianceCurves"],
        "occlusion": kinds["OcclusionMaps"],
        "attribution": kinds["AttributionMaps"],
        "maximization": (kinds["MaximizedLayer"],),
        "online_probe": OnlineScores(layers=("0", "3"), images=9, classes=3, batches=2, **online),
        "deconvnet": (patches, cnnviz.project(network(), images, units)),
    }


def identity(view: str, epoch: int = 1, **fields: Any) -> LookIdentity:
    data = DataIdentity(dataset="Digits", images=12, loader=1)
    return LookIdentity(view=view, run="r", epoch=epoch, global_step=10 * epoch, data=data, **fields)


@pytest.fixture(scope="module")
def record(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Two looks of each view, and a report."""
    record = Record(tmp_path_factory.mktemp("record"))
    for epoch in (1, 2):
        for view, result in results.items():
            record.add(identity(view, epoch, name="mine"), Seen(result=result, display=DISPLAY, epoch=epoch))
    table = report.Table("most_confused", ("true class", "images", "patch"), (("hen", 3, None), ("jay", 1, None)))
    items = (table, report.Scalar("accuracy", 0.75), report.Scalar("recall", float("nan")))
    record.add(identity("confusion", stage="test"), report.Report("confusion", title="Confusion", items=items))
    return record


def test_every_view_is_here(results: dict[str, Any]) -> None:
    assert sorted(results) == sorted(VIEW_NAMES)


@pytest.mark.parametrize("view", VIEW_NAMES)
def test_scalars_are_those_of_the_report(record: Record, view: str) -> None:
    looks = record.looks(view=view)
    drawn = [
        (look.epoch, item.name, item.value)
        for look in looks
        for item in look.report().items
        if isinstance(item, report.Scalar)
    ]
    found = frames.scalars_frame(looks)
    assert list(zip(found["epoch"], found["scalar"], strict=True)) == [(epoch, name) for epoch, name, _ in drawn]
    assert np.array_equal(found["value"].to_numpy(), np.array([value for *_, value in drawn]), equal_nan=True)
    assert bool(drawn) == (view not in WITHOUT_SCALARS)


def test_scalars_say_whose_they_are(record: Record) -> None:
    found = record.scalars()
    assert list(found.columns) == [*IDENTITY, "scalar", "value"]
    assert found["view"].unique().tolist() == [
        view for view in dict.fromkeys(look.identity.view for look in record.looks()) if view not in WITHOUT_SCALARS
    ]
    (line,) = found[(found["view"] == "confusion") & (found["scalar"] == "accuracy")].to_dict("records")
    when = line.pop("time")
    expected = {"run": "r", "view": "confusion", "name": "", "stage": "test", "dataset": "Digits", "loader": 1}
    assert line == {**expected, "epoch": 1, "global_step": 10, "scalar": "accuracy", "value": 0.75}
    (look,) = record.looks(view="confusion")
    assert abs(when.timestamp() - look.identity.time) < 1e-5
    assert when.tzname() == "UTC"
    stability = found[found["scalar"] == "0/stability"]["value"].tolist()
    assert np.isnan(stability[0])  # there is no look before
    assert stability[1] == 1.0


def test_a_line_of_top_patches(record: Record, results: dict[str, Any]) -> None:
    found = record.table("top_patches")
    mined: TopPatches = results["top_patches"]
    assert list(found.columns[:9]) == IDENTITY
    assert len(found) == 2 * sum(int((layer.images >= 0).sum()) for layer in mined)
    layer = mined["3"]
    (line,) = found[
        (found["epoch"] == 2) & (found["layer"] == "3") & (found["feature"] == 4) & (found["rank"] == 2)
    ].to_dict("records")
    label = int(layer.labels[4, 1])
    assert {name: line[name] for name in line if name not in IDENTITY} == {
        "layer": "3",
        "feature": 4,
        "rank": 2,
        "activation": float(layer.activations[4, 1]),
        "score": float(layer.scores[4, 1]),
        "image": int(layer.images[4, 1]),
        "label": label,
        "class_name": ("hen", "jay", "kite")[label],
        "file": {0: "a.png", 1: "b\\udcff.png"}.get(int(layer.images[4, 1])),
        "row": int(layer.rows[4, 1]),
        "column": int(layer.columns[4, 1]),
        **dict(zip(("top", "left", "bottom", "right"), layer.boxes[4, 1].tolist(), strict=True)),
        "shown": True,
    }


def test_deconvnet_has_a_line_a_projection(record: Record, results: dict[str, Any]) -> None:
    found = record.table("deconvnet")
    _, projection = results["deconvnet"]
    first = found[found["epoch"] == 1]
    units = [(unit.layer, unit.channel, unit.image, unit.row, unit.column) for unit in projection.units]
    assert list(first[["layer", "feature", "image", "row", "column"]].itertuples(index=False, name=None)) == units
    assert set(found["method"]) == {"deconvnet"}


def test_units_that_are_not_shown_and_patches_without_labels(tmp_path: Path) -> None:
    unlabeled = [batch[0] for batch in loader()]
    mined = cnnviz.mine_top_patches(network(), unlabeled, layers=["0"], k=20, features=[2])
    record = Record(tmp_path)
    record.add(identity("top_patches"), Seen(result=mined))
    found = record.table("top_patches")
    assert len(found) == 4 * 12  # k is more than there are images
    assert found.groupby("feature")["shown"].all().to_dict() == {0: False, 1: False, 2: True, 3: False}
    assert found["label"].isna().all()
    assert found["label"].dtype == "Int64"
    assert found["class_name"].isna().all()


@pytest.mark.parametrize(
    ("view", "lines", "expected"),
    [
        ("layer_probe", {"layer": "3", "split": 1}, {"head": "softmax", "control": False, "protocol": "custom"}),
        ("online_probe", {"layer": "3"}, {"accuracy": 0.5, "images": 9, "left_out": 1}),
        ("layer_table", {"layer": "3"}, {"type": "Conv2d", "kernel": "2 x 2", "parameters": 85}),
        ("filters", {"layer": "0", "filter": 3}, {"dominant": False}),
        ("correlation", {"layer": "0", "channel": 3}, {"images": 12, "constant": False}),
        ("activation_maps", {"layer": "0", "image": 9, "rank": 1}, {}),
        ("invariance", {"image": 9, "transform": "rotation", "value": 0.0}, {"raw": 0.0, "class_name": "kite"}),
        ("occlusion", {"image": 9, "top": 4, "left": 0}, {"bottom": 8, "right": 4, "target": 2, "label": 2}),
        ("attribution", {"image": 9}, {"method": "gradcam", "layer": "4", "class_name": "kite"}),
        ("maximization", {"objective": "b"}, {"start": 0, "bottom": 8, "layer": "3"}),
        ("confusion", {"true class": "hen"}, {"table": "most_confused", "images": 3}),
    ],
)
def test_a_line_of_each_view(record: Record, view: str, lines: dict[str, Any], expected: dict[str, Any]) -> None:
    found = record.table(view)
    chosen = found[found["epoch"] == 1]
    for column, value in lines.items():
        chosen = chosen[chosen[column] == value]
    (line,) = chosen.to_dict("records")
    assert {name: line[name] for name in expected} == expected


def test_the_numbers_of_an_occluder_are_those_of_the_result(record: Record, results: dict[str, Any]) -> None:
    found, maps = record.table("occlusion"), results["occlusion"]
    first = found[found["epoch"] == 1]
    assert np.array_equal(first["occluded_probability"].to_numpy(), maps.probabilities.double().flatten().numpy())
    strongest = first.groupby("image", sort=False)["activation"].first().to_numpy()
    assert np.array_equal(strongest, maps.untouched_activations.double().numpy())


@pytest.mark.parametrize("view", [*VIEW_NAMES, "confusion"])
def test_frames_are_written_and_read_again(record: Record, view: str, tmp_path: Path) -> None:
    found = record.table(view)
    found.to_csv(tmp_path / "x.csv", index=False)
    again = pd.read_csv(tmp_path / "x.csv")
    assert list(again.columns) == list(found.columns)
    assert len(again) == len(found)
    found.to_parquet(tmp_path / "x.parquet")
    read = pd.read_parquet(tmp_path / "x.parquet")
    filled = [frame.astype(object).where(frame.notna(), "nothing") for frame in (read, found)]
    pd.testing.assert_frame_equal(*filled, check_dtype=False)


def test_a_view_that_is_not_there_is_named(record: Record) -> None:
    with pytest.raises(ValueError, match=r"has no look of 'top_patch'\. Did you mean 'top_patches'\? It has \["):
        record.table("top_patch")


def test_an_empty_record_has_an_empty_frame(tmp_path: Path) -> None:
    found = Record(tmp_path).scalars()
    assert list(found.columns) == [*IDENTITY, "scalar", "value"]
    assert found["value"].mean() is not None
    assert len(found) == 0


def test_a_damaged_look_is_left_out_with_a_warning(results: dict[str, Any], tmp_path: Path) -> None:
    record = Record(tmp_path)
    for epoch in (1, 2):
        record.add(identity("filters", epoch), Seen(result=results["filters" if epoch == 2 else "correlation"]))
    first, _ = record.looks()
    (tmp_path / "packs" / f"{first.id}.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"a look is left out: look {first.id}"):
        found = record.table("filters")
    assert set(found["epoch"]) == {2}


def test_no_image_is_read_and_no_picture_drawn(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was made")

    monkeypatch.setattr(Record, "image", refuse)
    for kind in ("Picture", "Tile"):
        monkeypatch.setattr(getattr(report, kind), "__post_init__", refuse)
    record.scalars()
    for view in VIEW_NAMES:
        record.table(view)
