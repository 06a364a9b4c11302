"""Top patches of networks of signals and of volumes: those of a full run, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference.other_axes import Branches3d, ecg_resnet, small_r3d
from torch import Tensor, nn

from lightning_cnnviz import load, mine_top_patches, save
from lightning_cnnviz.core.network.hooks import hooked
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps

CASES = [
    pytest.param(ecg_resnet, (3, 70), id="signals"),
    pytest.param(Branches3d, (2, 5, 18, 21), id="volumes"),
    pytest.param(small_r3d, (3, 4, 16, 16), id="r3d_18, small clips", marks=pytest.mark.slow),
    pytest.param(small_r3d, (3, 8, 32, 32), id="r3d_18", marks=pytest.mark.slow),
]


def all_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of a full run, the maps of each convolution as mining reads them."""
    found: dict[str, Tensor] = {}
    traced = trace_feature_maps(model, images[:1], select_layers(model))
    with (
        torch.no_grad(),
        hooked({maps.layer: maps.site for maps in traced}, lambda name, value: found.update({name: value.clone()})),
    ):
        model(images)
    return found


@pytest.mark.parametrize(("make", "size"), CASES)
def test_units_are_those_of_a_full_run(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # In float64: in float32 a value depends a little on how many images run together.
    model, images = make().double().eval(), torch.randn(7, *size, dtype=torch.float64)
    mined = mine_top_patches(model, [images[:3], images[3:4], images[4:]], k=3, features=None, sources=True)
    maps = all_maps(model, images)
    assert [layer.layer for layer in mined] == list(maps)
    for layer in mined:
        values = maps[layer.layer]
        best = values.flatten(2).amax(2).T.sort(dim=1, descending=True, stable=True)
        torch.testing.assert_close(layer.activations, best.values[:, :3], rtol=1e-5, atol=1e-6)
        for feature in range(0, len(layer.scores), max(1, len(layer.scores) // 4)):
            for rank, patch in enumerate(layer.patches[feature]):
                image = int(layer.images[feature, rank])
                own = values[image, feature]
                place = tuple(int(part) for part in torch.unravel_index(own.argmax(), own.shape))
                names = {1: (layer.columns,), 3: (layer.depths, layer.rows, layer.columns)}[own.ndim]
                assert tuple(int(part[feature, rank]) for part in names if part is not None) == place
                box = layer.boxes[feature, rank].tolist()
                if own.ndim == 1:
                    assert (layer.rows[feature, rank], box[0], box[2]) == (0, 0, 1)
                    assert torch.equal(patch, images[image][:, box[1] : box[3]])
                else:
                    front, top, left, back, bottom, right = box
                    assert torch.equal(patch, images[image][:, front:back, top:bottom, left:right])
    shown = {source.index: source for source in mined.sources}
    for index, source in shown.items():
        spread = images[index].flatten(1).amax(1) - images[index].flatten(1).amin(1)
        assert float((source.values() - images[index]).abs().max()) <= float(spread.max()) / 255


@pytest.mark.parametrize(("make", "size"), CASES[:2])
def test_several_units_an_image_and_means_rank_likewise(make: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(4, *size)
    maps = all_maps(model, images)
    several, means = (
        mine_top_patches(model, [images], k=5, per_image=None),
        mine_top_patches(model, [images], k=4, rank_by="mean"),
    )
    for layer in several:
        flat = maps[layer.layer].transpose(0, 1).flatten(1).sort(1, descending=True).values
        torch.testing.assert_close(layer.scores, flat[:, :5], rtol=1e-5, atol=1e-6)
    for layer in means:
        expected = maps[layer.layer].double().flatten(2).mean(2).T.sort(1, descending=True).values
        torch.testing.assert_close(layer.scores.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "size"), CASES[:2])
def test_what_is_saved_comes_back(make: Callable[[], nn.Module], size: tuple[int, ...], tmp_path: Path) -> None:
    mined = mine_top_patches(make().eval(), [torch.randn(3, *size)], k=2, features=2, sources=True)
    save(mined, tmp_path / "kept")
    back = load(tmp_path / "kept")
    for own, its in zip(mined, back, strict=True):
        assert torch.equal(own.boxes, its.boxes) and torch.equal(own.columns, its.columns)  # noqa: PT018
        pairs = zip(sum(own.patches, ()), sum(its.patches, ()), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert [one.index for one in mined.sources] == [one.index for one in back.sources]
    assert torch.equal(mined.sources[0].values(), back.sources[0].values())


def test_images_of_other_axes_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"does not take images of shape .*its convolutions are Conv1d, of signals"):
        mine_top_patches(ecg_resnet().eval(), [torch.rand(2, 3, 9, 9)])
    with pytest.raises(ValueError, match=r"does not take images of shape .*its convolutions are Conv3d, of clips"):
        mine_top_patches(Branches3d().eval(), [torch.rand(2, 2, 9, 9)])
    with pytest.raises(TypeError, match=r"signals or images are float or uint8 tensors \(N, C, L\) or \(N, C, H, W\)"):
        mine_top_patches(ecg_resnet().eval(), [torch.rand(2, 3)])
