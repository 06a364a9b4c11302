from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnviz.core.images.activation_maps import ActivationMaps
from lightning_cnnviz.render.activation_maps import activation_maps_report
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import Gallery, Report

AS_IS = Normalization((0.0,), (1.0,), "they lie within 0 and 1")


def shown(maps: Tensor, labels: Tensor | None = None, names: list[str] | None = None) -> Report:
    count, kept = maps.shape[:2]
    features = torch.arange(10, 10 + kept).expand(count, kept)
    found = ActivationMaps(layer="conv", channels=32, features=features, peaks=maps.flatten(2).amax(2), maps=maps)
    display = Display(
        pixels=tuple(AS_IS.to_pixels(image) for image in torch.rand(count, 1, 40, 40)),
        indices=tuple(range(7, 7 + count)),
        labels=None if labels is None else tuple(labels.tolist()),
        class_names=None if names is None else tuple(names),
    )
    return activation_maps_report([found], display)


def only(report: Report) -> Gallery:
    (item,) = report.items
    assert isinstance(item, Gallery)
    return item


def test_a_row_for_each_image_with_the_image_first() -> None:
    maps = torch.rand(2, 3, 4, 4)
    report = shown(maps, torch.tensor([1, 5]), ["cat", "dog"])
    gallery, (white, other) = only(report), maps.flatten(1).amax(1).tolist()
    assert report.key(gallery) == "activation_maps/conv"
    first, second = gallery.rows
    assert (first.caption, first.numbers) == ("image 7", {"label": "dog", "white": white})
    assert (second.caption, second.numbers) == ("image 8", {"label": 5, "white": other})  # a label without a name
    assert [tile.caption.split(":")[0] for tile in first.tiles] == ["image", "10", "11", "12"]
    assert gallery.caption.startswith("the 3 strongest of 32 feature maps of 4 x 4")
    assert {tuple(tile.pixels.shape) for tile in first.tiles} == {(3, 96, 96)}


def test_maps_share_a_scale_from_black_to_white_and_keep_hard_edges() -> None:
    maps = torch.tensor([[[[0.0, 4.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    _, strong, weak = only(shown(maps)).rows[0].tiles
    assert strong.pixels[0, ::48, ::48].tolist() == [[0, 255], [128, 0]]
    assert weak.pixels[0, ::48, ::48].tolist() == [[64, 0], [0, 0]]
    assert bool((strong.pixels[:, :48, 48:] == 255).all())
    assert strong.numbers == {"feature": 10, "max activation": 4.0}


def test_zero_is_mid_gray_where_there_are_negative_activations() -> None:
    _, tile = only(shown(torch.tensor([[[[0.0, -2.0], [1.0, 2.0]]]]))).rows[0].tiles
    assert tile.pixels[0, ::48, ::48].tolist() == [[128, 0], [191, 255]]


def test_a_negative_activation_can_set_the_scale() -> None:
    _, tile = only(shown(torch.tensor([[[[0.0, -4.0], [2.0, 0.0]]]]))).rows[0].tiles
    assert tile.pixels[0, ::48, ::48].tolist() == [[128, 0], [191, 128]]


def test_large_maps_keep_their_size_and_flat_ones_are_black() -> None:
    _, tile = only(shown(torch.zeros(1, 1, 150, 120))).rows[0].tiles
    assert tuple(tile.pixels.shape) == (3, 150, 120)
    assert int(tile.pixels.max()) == 0


def test_what_is_no_number_is_told() -> None:
    report = shown(torch.tensor([[[[torch.nan, 1.0], [torch.inf, 0.0]]]]))
    assert only(report).rows[0].tiles[1].pixels[0, ::48, ::48].tolist() == [[0, 255], [0, 0]]
    assert report.notes[0] == "Not finite: NaN or infinite activations, shown as zero, in conv."
