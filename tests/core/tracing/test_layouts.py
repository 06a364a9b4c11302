"""Where rows and columns lie, told by where a map comes from; and that every view reads such maps right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.support import nan_boxes
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.images.activation_maps import activation_maps
from lightning_cnnviz.core.images.attribution import attribute
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.core.tracing.default_layers import layer_site
from lightning_cnnviz.core.tracing.layouts import LayoutReader

Function = Callable[[Tensor], Tensor]


def windows(x: Tensor) -> Tensor:
    """`(N, H, W, C)` cut in windows of 2 x 2, attention within each, and put back."""
    n, h, w, c = x.shape
    tokens = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    mixed = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
    return mixed.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


# What is done to an image (1, 6, 6, 8) of six channels, six rows, eight columns; no proportion tells them apart.
CHANNELS_FIRST: dict[str, Function] = {
    "convolution": lambda x: F.conv2d(x, torch.ones(6, 6, 3, 3), padding=1),
    "there and back": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "windows": lambda x: windows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "pooled": lambda x: F.max_pool2d(x, 2),
    "one row": lambda x: x[:, :, :1],
    "gated": lambda x: x * x.mean((2, 3))[..., None, None],
}
CHANNELS_LAST: dict[str, Function] = {
    "permuted": lambda x: x.permute(0, 2, 3, 1),
    "moved": lambda x: x.movedim(1, -1).contiguous(),
    "norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,)),
    "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(8, 6), torch.ones(8)),
    "windows": lambda x: windows(x.permute(0, 2, 3, 1)),
    "shifted": lambda x: x.permute(0, 2, 3, 1).roll((1, 1), (1, 2)),
    "merged": lambda x: torch.cat([x.permute(0, 2, 3, 1)[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1),
    "tokens": lambda x: F.linear(x.flatten(2).transpose(1, 2), torch.ones(6, 6)).view(1, 6, 8, 6),
    "one column": lambda x: x.permute(0, 2, 3, 1)[:, :, :1],
    "stacked and chosen": lambda x: torch.stack([x, x + 1], 1)[:, 1].permute(0, 2, 3, 1),
}
NOT_KNOWN: dict[str, Function] = {
    "turned": lambda x: x.transpose(2, 3),
    "one position": lambda x: x.mean((2, 3), keepdim=True),
    "several images": lambda x: x.view(1, 6, 6, 2, 4).transpose(1, 3).flatten(3),
    "sorted out": lambda x: x.flatten(2)[:, :, torch.arange(48).flip(0)].view(1, 6, 16, 3),
}


def told(function: Function) -> bool | None:
    image = torch.rand(1, 6, 6, 8)
    reader = LayoutReader(image)
    with torch.no_grad(), reader:
        maps = function(image)
        return reader.layouts.is_channels_last(maps)


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first(name: str) -> None:
    assert told(CHANNELS_FIRST[name]) is False


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_channels_last(name: str) -> None:
    assert told(CHANNELS_LAST[name]) is True


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_is_neither_is_not_known(name: str) -> None:
    assert told(NOT_KNOWN[name]) is None


class Turned(nn.Module):
    """One network, whose maps are (N, C, H, W) or (N, H, W, C): as many channels as rows."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem, self.last = nn.Conv2d(3, 6, 3, padding=1, stride=2), last
        self.deep, self.mixed, self.act = nn.Identity(), nn.Linear(6, 6), nn.ReLU()
        self.head = nn.Linear(6, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.mixed(self.stem(x).permute(0, 2, 3, 1))
        maps = maps if self.last else maps.permute(0, 3, 1, 2)
        maps = self.act(maps)
        logits: Tensor = self.head(maps.square().mean((1, 2) if self.last else (2, 3)))
        return logits


def both() -> tuple[nn.Module, nn.Module, Tensor]:
    plain, turned = Turned(last=False).eval(), Turned(last=True).eval()
    return plain, turned, torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def test_mined_units_are_those_of_the_same_maps_with_channels_first() -> None:
    plain, turned, images = both()
    loader = torch.utils.data.DataLoader(images, batch_size=2)  # type: ignore[arg-type]
    (one,), (other,) = (mine_top_patches(model, loader, layers="act", k=3) for model in (plain, turned))
    for part in ("images", "rows", "columns", "boxes"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part
    assert torch.allclose(one.activations, other.activations)
    expected = nan_boxes(
        lambda image, see: see(
            "act", plain.act(plain.mixed(plain.stem(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        ),
        images[:1],
    )  # type: ignore[operator,union-attr]
    for channel in range(6):
        row, column = int(other.rows[channel, 0]), int(other.columns[channel, 0])
        assert other.boxes[channel, 0].tolist() == expected["act"][channel, row, column].tolist()


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_projections_are_those_of_the_same_maps_with_channels_first(method: Any) -> None:
    plain, turned, images = both()
    units = [Unit(0, "act", 2, 3, 4), Unit(1, "act", 5, 0, 1), Unit(2, "act", 1)]
    one, other = (project(model, images, units, method=method) for model in (plain, turned))
    assert [unit[:5] for unit in one.units] == [unit[:5] for unit in other.units]
    for number in range(3):
        assert torch.allclose(one.on_image(number), other.on_image(number), atol=1e-5)


@pytest.mark.parametrize("layer", [None, "act"])
def test_maps_of_classes_are_those_of_the_same_maps_with_channels_first(layer: str | None) -> None:
    plain, turned, images = both()
    labels = torch.tensor([0, 3, 1])
    one, other = (attribute(model, images, labels, layer=layer) for model in (plain, turned))
    assert one.layer == other.layer == "act"
    assert torch.allclose(one.maps, other.maps, atol=1e-5)


@pytest.mark.parametrize("layer", [None, "act"])
def test_occlusion_sees_the_same_maps_with_channels_first(layer: str | None) -> None:
    plain, turned, images = both()
    one, other = (occlude(model, images, layer=layer, size=4, stride=3) for model in (plain, turned))
    assert one.layer == other.layer == "act"
    assert torch.equal(one.channels, other.channels)
    assert torch.allclose(one.activations, other.activations, atol=1e-5)
    # The explicit map: each square is set to the mean, and the channel's sum of activations is read.
    channel = int(one.channels[0])
    fill = images.mean((0, 2, 3))
    for place, box in enumerate(one.boxes.flatten(0, 1).tolist()):
        top, left, bottom, right = box
        covered = images[:1].clone()
        covered[0, :, top:bottom, left:right] = fill[:, None, None]
        with torch.no_grad():
            maps = turned.act(turned.mixed(turned.stem(covered).permute(0, 2, 3, 1)))  # type: ignore[operator]
        row, column = divmod(place, one.boxes.shape[1])
        assert float(other.activations[0, row, column]) == pytest.approx(float(maps[..., channel].sum()), rel=1e-4)


def test_activation_maps_are_those_of_the_same_maps_with_channels_first() -> None:
    plain, turned, images = both()
    (one,), (other,) = (activation_maps(model, images, layers="act") for model in (plain, turned))
    assert torch.allclose(one.maps, other.maps, atol=1e-5)


def test_rows_of_the_table_have_the_fields_of_the_same_maps_with_channels_first() -> None:
    plain, turned, images = both()
    rows = [
        {row.layer: (row.receptive_field, row.jump) for row in layer_table(model, images[:1]).rows if row.layer}
        for model in (plain, turned)
    ]
    assert rows[0]["stem"] == rows[1]["stem"] == ((3, 3), (2.0, 2.0))
    assert rows[0]["mixed"] == rows[1]["mixed"] == ((3, 3), (2.0, 2.0))


class Blocks(nn.Module):
    """As transformers have them: a scale on the last dimension, a sum, a merging of neighbors, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.ones(8))
        self.mix, self.wide = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.merge, self.last = nn.Linear(32, 16), nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.scale * self.mix(x)
        x = x + self.wide(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return (self.merge(x) * self.last).mean((1, 2))


def test_fields_in_channels_last_beyond_linear_layers() -> None:
    table = layer_table(Blocks(), (3, 64, 48))
    found = [(row.type, row.receptive_field, row.jump, row.clipped) for row in table.rows]
    assert found == [
        ("Conv2d", (4, 4), (4.0, 4.0), False),
        ("Linear", (4, 4), (4.0, 4.0), False),
        ("functional mul", (4, 4), (4.0, 4.0), False),
        ("sum", (4, 4), (4.0, 4.0), False),
        ("Conv2d", (12, 12), (4.0, 4.0), False),
        ("sum", (12, 12), (4.0, 4.0), False),
        ("concatenation", (16, 16), (8.0, 8.0), False),
        ("Linear", (16, 16), (8.0, 8.0), False),
        ("functional mul", (16, 16), (8.0, 8.0), False),
        ("functional mean", (None, None), None, False),
    ]
    assert sum(row.parameters for row in table.rows if row.layer == "mix") == 8 * 8 + 8


def test_a_layout_that_only_proportions_tell_is_stated(caplog: pytest.LogCaptureFixture) -> None:
    class Scrambled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.head = nn.Identity(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.maps(x.flatten(1)[:, torch.arange(3 * 64).flip(0)][:, :144].view(len(x), 6, 6, 4))
            logits: Tensor = self.head(maps.mean((1, 2)))
            return logits

    with caplog.at_level(logging.WARNING):
        _, site, _ = layer_site(Scrambled().eval(), torch.rand(1, 3, 8, 8), "maps")
    assert "layer 'maps': where the image's rows and columns lie in its maps (1, 6, 6, 4)" in caplog.text
    assert "by their proportions they are taken to be (N, H, W, C)" in caplog.text
    assert site.channels_last
