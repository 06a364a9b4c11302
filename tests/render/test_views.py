"""Every monitor's view can be drawn from its result; what looks carry on stands in later ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.text import Text
from torch import nn

import lightning_cnnviz
from lightning_cnnviz import Monitor, attribute, measure_invariance, mine_top_patches, occlude, show
from lightning_cnnviz.core.images.activation_maps import activation_maps
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.render.confusion import confusion_report
from lightning_cnnviz.render.figures import kept_figures
from lightning_cnnviz.render.frames import Frame
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.patches import Crops
from lightning_cnnviz.render.views import VIEW_NAMES, Seen, carry_on, draw_last, draw_view
from lightning_cnnviz.report import Gallery, Report, Scalar, Table

NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 5))


def seen(seed: int) -> Seen:
    images = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return Seen(result=mine_top_patches(NET, [images], k=2), epoch=seed)


def test_every_monitor_has_its_view_and_every_view_of_one_network_its_monitor() -> None:
    kinds = [getattr(lightning_cnnviz, name) for name in lightning_cnnviz.__all__]
    monitors = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Monitor) and kind is not Monitor]
    assert {kind.view for kind in monitors} == set(VIEW_NAMES) - {"comparison"}


def test_a_wrong_name_is_refused_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no view is called 'top_patch'. Did you mean 'top_patches'"):
        draw_view("top_patch", seen(0))


def test_stability_is_measured_against_the_last_look_that_was_carried_on() -> None:
    first, second = seen(1), seen(2)

    def stability(*carried: Seen) -> float:
        report = draw_view("top_patches", second, [carry_on("top_patches", look) for look in carried])
        return next(item.value for item in report.items if isinstance(item, Scalar) and item.name == "2/stability")

    assert stability() != stability()  # NaN
    assert stability(second, first) < 1
    assert stability(first, second) == 1


def test_what_is_carried_on_has_no_pixels() -> None:
    carried = carry_on("top_patches", seen(1))
    assert not any(layer.patches[0] for layer in carried)
    assert carry_on("correlation", seen(1)) is None


def test_the_last_look_of_top_patches_is_shown_as_a_table() -> None:
    last = draw_last("top_patches", seen(1))
    assert last is not None
    (table,) = last.items
    assert isinstance(table, Table)
    assert draw_last("filters", seen(1)) is None


FOLDERS = ["n02483708_siamang", "n01484850_great_white_shark"]


def views_of_classes() -> dict[str, Report]:
    """Those that name classes, of a data set of ImageNet's folders."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(2, 3, 12, 12, generator=generator), torch.tensor([0, 1])
    net = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    shown: dict[str, Any] = {"images": (images, labels), "class_names": FOLDERS}
    found = {
        "occlusion": occlude(net, images, labels, size=6, stride=3),
        "attribution": attribute(net, images, labels, layer="0"),
        "invariance": measure_invariance(net, images, labels, ["0"], ["rotation"]),
        "activation_maps": activation_maps(net, images, ["0"]),
        "top_patches": mine_top_patches(net, [(images, labels)], k=2),
    }
    reports: dict[str, Report] = {view: show(result, **shown) for view, result in found.items()}
    return reports | {"confusion": confusion_report(torch.eye(2, dtype=torch.int64), FOLDERS)}


def test_no_view_says_the_folder_of_a_class_of_imagenet() -> None:
    with kept_figures() as kept:
        reports = views_of_classes()
    drawn = [text.get_text() for _, figure in kept for text in figure.findobj(Text)]
    said = {view: repr((report.items, report.notes, report.facts)) for view, report in reports.items()}
    for view, text in {**said, "figures": " ".join(drawn)}.items():
        assert "siamang" in text or view == "invariance", view  # which names classes in its figures alone
        assert "n02483708" not in text, view


def test_a_tile_says_which_part_of_which_image_it_is() -> None:
    images = torch.rand(6, 3, 12, 12)
    miner = PatchMiner(NET, select_layers(NET, "conv"), k=2, sources=True)
    with torch.no_grad(), miner.batch(images, torch.arange(6)):
        NET(images)
    result = miner.compute()
    report = draw_view("top_patches", Seen(result=result))
    crops = Crops(result, Normalization((0.0,), (1.0,)), {})
    for gallery in (item for item in report.items if isinstance(item, Gallery)):
        layer = result[gallery.name]
        for row in gallery.rows:
            for tile in row.tiles:
                source = tile.source
                assert source is not None
                top, left, bottom, right = source.box
                row_at, column_at = source.offset
                cut = tile.pixels[:, row_at : row_at + bottom - top, column_at : column_at + right - left]
                # Kept in 8 bits of the image's own range, a pixel may be one level off.
                difference = cut.int() - source.pixels[:, top:bottom, left:right].int()
                assert int(difference.abs().max()) <= 1
                assert tile.numbers["dataset index"] == source.index
        assert crops.source(layer, layer.features[0], 0, Frame.of_layer(layer)) is not None
