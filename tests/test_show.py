from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from lightning_cnnviz import (
    ChannelActivation,
    Protocol,
    ReportFigure,
    Unit,
    attribute,
    channel_correlation,
    compare_units,
    layer_table,
    maximize,
    measure_invariance,
    mine_top_patches,
    occlude,
    probe,
    probe_layers,
    project,
    show,
    tap_features,
)
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.images.activation_maps import activation_maps
from lightning_cnnviz.core.images.filters import layer_filters
from lightning_cnnviz.core.maximization.parametrization import Box
from lightning_cnnviz.core.maximization.plan import maximize_plan, plan_layers
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps
from lightning_cnnviz.record import LookIdentity, Record
from lightning_cnnviz.render.display import display_of_sample
from lightning_cnnviz.render.views import VIEW_NAMES, Seen
from lightning_cnnviz.report import Gallery, Picture, Report, Scalar


class Normalize:
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Folder(Dataset[Any]):
    """A data set as torchvision makes it of a folder."""

    classes = ("ant", "bee")
    transform = Normalize()

    def __init__(self, name: str = "photos", count: int = 12) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 16, 16, generator=generator)
        self.samples = [(f"{name}/{number}.jpg", number % 2) for number in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 2


def network() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), *head).eval()


def loader() -> DataLoader[Any]:
    return DataLoader(Folder(), batch_size=4)


def images() -> tuple[Tensor, Tensor]:
    return Folder().images[:3], torch.tensor([0, 1, 0])


def patches_and_projection() -> Any:
    patches = mine_top_patches(network(), loader(), k=4, features=2)
    units = [
        Unit(int(layer.images[f, rank]), layer.layer, f, int(layer.rows[f, rank]), int(layer.columns[f, rank]))
        for layer in patches
        for f, line in zip(layer.features, layer.patches, strict=True)
        for rank in range(len(line))
    ]
    return patches, project(network(), Folder().images, units)


def maximized() -> Any:
    model, bounds = network(), Box([-2.0] * 3, [2.0] * 3)
    (plan,) = plan_layers(model, images()[0][:1], ["2"], 2)
    return [maximize_plan(model, plan, images()[0], bounds=bounds, starts=2, steps=2, invariance=1)]


def optima() -> Any:
    model = network()
    maps = trace_feature_maps(model, images()[0][:1], select_layers(model, ["2"]))[0]
    return maximize(model, [ChannelActivation(maps, 0)], (3, 16, 16), starts=2, steps=2)


def probed() -> Any:
    return probe_layers(tap_features(network(), loader(), pool=100), Protocol(per_class=3, splits=2))


def scored() -> Any:
    labels = torch.arange(12) % 2
    return probe(torch.randn(12, 3), labels, Protocol(per_class=3, splits=2), layer="fc")


def online() -> OnlineScores:
    scores = torch.tensor([0.5, 0.75], dtype=torch.float64)
    return OnlineScores(
        layers=("0", "2"), accuracy=scores, images=12, classes=2, batches=3, left_out=torch.zeros(2).long()
    )


RESULTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "layer table": ("layer_table", lambda: layer_table(network(), (3, 16, 16))),
    "filters": ("filters", lambda: layer_filters(network(), ["0"])),
    "one layer's filters": ("filters", lambda: layer_filters(network(), ["0"])[0]),
    "patches": ("top_patches", lambda: mine_top_patches(network(), loader(), k=4)),
    "one layer's patches": ("top_patches", lambda: mine_top_patches(network(), loader(), k=4)["0"]),
    "patches, projected": ("deconvnet", patches_and_projection),
    "projection, patches": ("deconvnet", lambda: patches_and_projection()[::-1]),
    "projection": ("projection", lambda: project(network(), images()[0], [Unit(0, "0", 1), Unit(2, "2", 3)])),
    "correlation": ("correlation", lambda: channel_correlation(network(), loader(), ["0", "2"])),
    "one layer's correlation": ("correlation", lambda: channel_correlation(network(), loader(), ["0"])[0]),
    "comparison": ("comparison", lambda: compare_units(network(), network(), loader(), ["0", "2"])),
    "activation maps": ("activation_maps", lambda: activation_maps(network(), images()[0], ["0", "2"])),
    "probes": ("layer_probe", probed),
    "one layer's scores": ("layer_probe", scored),
    "online scores": ("online_probe", online),
    "invariance": ("invariance", lambda: measure_invariance(network(), *images(), transforms=["rotation", "blur"])),
    "occlusion": ("occlusion", lambda: occlude(network(), *images(), size=8, stride=8)),
    "attribution": ("attribution", lambda: attribute(network(), *images())),
    "maximized layers": ("maximization", maximized),
    "maximization": ("maximization", optima),
    "invariance of an optimum": ("optimum_invariance", lambda: maximized()[0].invariances[0][1]),
    "sample": ("sample", lambda: Sample(images=images()[0], labels=images()[1], indices=torch.tensor([3, 4, 5]))),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_shown_and_saved(name: str, tmp_path: Path) -> None:
    view, make = RESULTS[name]
    shown = show(make(), loader(), images=images())
    assert isinstance(shown, ReportFigure)
    assert shown.view == view
    assert shown.items
    html = shown._repr_html_()
    assert "<img" in html or "<svg" in html or "<table" in html
    for suffix in ("svg", "csv"):
        assert shown.save(tmp_path / f"figure.{suffix}").stat().st_size > 100


def test_every_view_of_a_monitor_has_a_result_here() -> None:
    assert set(VIEW_NAMES) - {view for view, _ in RESULTS.values()} == set()


def test_names_of_classes_and_files_and_the_normalization_are_the_data_sets() -> None:
    shown = show(mine_top_patches(network(), loader(), k=4), loader())
    tile = next(item for item in shown.items if isinstance(item, Gallery)).rows[0].tiles[0]
    assert tile.numbers["label"] in Folder.classes
    assert tile.numbers["file"] == f"photos/{tile.numbers['dataset index']}.jpg"
    assert "mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25 (found in the data set's transforms)" in shown.notes[0]


def test_projected_patches_are_named_by_their_files() -> None:
    gallery = next(item for item in show(patches_and_projection(), loader()).items if isinstance(item, Gallery))
    tile = gallery.rows[0].tiles[0]
    assert tile.numbers["file"] == f"photos/{tile.numbers['dataset index']}.jpg"


def test_files_are_found_through_subsets_and_joined_data_sets() -> None:
    joined = ConcatDataset([Folder("a", 2), Folder("b", 4)])
    sample = Sample(images=images()[0], labels=None, indices=torch.tensor([0, 1, 2]))
    (gallery,) = show(sample, Subset(joined, [5, 0, 2])).items
    assert isinstance(gallery, Gallery)
    assert [tile.numbers["file"] for tile in gallery.rows[0].tiles] == ["b/3.jpg", "a/0.jpg", "b/0.jpg"]


def test_what_is_given_comes_before_what_is_found() -> None:
    found = mine_top_patches(network(), loader(), k=1)
    shown = show(found, loader(), normalization=([0.0], [1.0]), class_names=["x", "y"])
    gallery = next(item for item in shown.items if isinstance(item, Gallery))
    assert gallery.rows[0].tiles[0].numbers["label"] in ("x", "y")
    assert shown.notes[0] == "Inputs are shown as they are (given)."


def test_without_data_it_is_said_that_images_are_scaled_by_their_range() -> None:
    assert "no normalization found" in show(mine_top_patches(network(), loader(), k=1)).notes[0]


def test_images_that_a_result_does_not_hold_are_asked_for() -> None:
    maps = occlude(network(), *images(), size=8, stride=8)
    with pytest.raises(ValueError, match=r"OcclusionMaps is about 3 images and does not hold them: give .*images="):
        show(maps, loader())
    with pytest.raises(ValueError, match=r"about 3 images of 16 x 16 pixels, not of images \(2, 3, 16, 16\)"):
        show(maps, images=images()[0][:2])
    with pytest.raises(ValueError, match=r"about 3 images of 16 x 16 pixels, not of images \(3, 3, 8, 8\)"):
        show(maps, images=torch.zeros(3, 3, 8, 8))
    with pytest.raises(ValueError, match="give a tensor"):
        show(maps, images=images()[0][0])


def test_invariance_has_examples_of_the_images_that_are_given() -> None:
    curves = measure_invariance(network(), *images(), transforms="rotation")
    with_images, without = show(curves, images=images()), show(curves)
    assert [len(shown.items) for shown in (with_images, without)] == [len(without.items)] * 2
    first, second = (
        next(item for item in shown.items if isinstance(item, Picture)) for shown in (with_images, without)
    )
    assert first.pixels.float().std() != second.pixels.float().std()


def test_pictures_that_matplotlib_drew_keep_lines_and_letters() -> None:
    shown = show(occlude(network(), *images(), size=8, stride=8), loader(), images=images())
    figure = shown.figure("image 1")
    assert "p(true class)" in " ".join(text for axes in figure.axes for text in [axes.get_title(loc="left")])
    assert set(shown.drawings) == {item.name for item in shown.items if isinstance(item, Picture)}


def test_a_look_of_a_record_brings_what_it_needs(tmp_path: Path) -> None:
    maps = occlude(network(), *images(), size=8, stride=8)
    sample = Sample(images=images()[0], labels=None, indices=torch.arange(3))
    seen = Seen(result=maps, display=display_of_sample(sample, None))
    look = Record(tmp_path).add(LookIdentity(view="occlusion", name="mine"), seen)
    shown = show(look)
    assert (shown.view, shown.name) == ("occlusion", "mine")
    assert set(shown.drawings) == {"image 0", "image 1", "image 2"}


def test_a_report_is_taken_as_it_is() -> None:
    report = Report("studies", title="Mine", items=(Scalar("a", 1.0),), name="x")
    shown = show(report)
    assert (shown.view, shown.title, shown.items, shown.name) == ("studies", "Mine", report.items, "x")


def test_what_cannot_be_drawn_is_refused_with_what_can() -> None:
    for wrong in (torch.zeros(3), 5, [], (torch.zeros(1), 2)):
        with pytest.raises(TypeError, match=r"show cannot draw .*; it draws one or several of TopPatches, "):
            show(wrong)
    table = layer_table(network(), (3, 16, 16))
    with pytest.raises(TypeError, match="one LayerTable at a time, not 2"):
        show([table, table])
    with pytest.raises(TypeError, match="data is a Tensor; give a loader or a data set"):
        show(table, torch.zeros(3, 3, 8, 8))


def test_patches_and_projections_that_do_not_belong_together_are_refused() -> None:
    patches, _ = patches_and_projection()
    with pytest.raises(ValueError, match="16 patches and 1 projected units"):
        show((patches, project(network(), images()[0], [Unit(0, "0", 1)])))
