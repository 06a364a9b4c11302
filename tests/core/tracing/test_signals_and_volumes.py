"""Feature maps of networks of signals and of volumes: which they are, and the boxes that their units see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference.other_axes import Branches3d, ecg_resnet, small_r3d
from reference.support import See, nan_boxes
from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import hooked
from lightning_cnnviz.core.network.layers import image_axes, select_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("make", "size"),
    [
        pytest.param(ecg_resnet, (3, 50), id="signals"),
        pytest.param(ecg_resnet, (3, 129), id="longer signals"),
        pytest.param(Branches3d, (2, 5, 18, 21), id="volumes"),
        pytest.param(small_r3d, (3, 4, 16, 16), id="r3d_18, small clips"),
        pytest.param(small_r3d, (3, 8, 32, 32), id="r3d_18", marks=SLOW),
    ],
)
def test_boxes_of_all_convolutions_are_those_that_nan_spreads_to(
    make: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    image = torch.rand(1, *size)
    traced = trace_feature_maps(model, image, select_layers(model))
    assert len(traced) >= 4

    def compute(images: Tensor, see: See) -> None:
        with torch.no_grad(), hooked({maps.layer: maps.site for maps in traced}, see):
            model(images)

    expected = nan_boxes(compute, image)
    for maps in traced:
        boxes = expected[maps.layer]
        assert maps.shape == boxes.shape[:-1]
        found = maps.field.boxes.long()
        if image.ndim == 3:  # a signal is an image of one row
            assert found[..., [0, 2]].flatten(0, -2).unique(dim=0).tolist() == [[0, 1]]
            found = found[:, 0, :, [1, 3]]
        assert torch.equal(found.expand_as(boxes), boxes), maps.layer


def test_a_layer_without_positions_has_one_that_sees_all() -> None:
    signals, volumes = ecg_resnet().eval(), Branches3d().eval()
    (maps,) = trace_feature_maps(signals, torch.rand(1, 3, 50), select_layers(signals, "8"))
    assert (maps.shape, maps.field.boxes[0, 0, 0].tolist()) == ((4, 1), [0, 0, 1, 50])
    (maps,) = trace_feature_maps(volumes, torch.rand(1, 2, 5, 18, 21), select_layers(volumes, "head"))
    # The average leaves out the last of five frames, and no convolution reaches what is right of the last stride.
    assert (maps.shape, maps.field.image_size) == ((2, 1, 1, 1), (5, 18, 21))
    assert maps.field.boxes.shape == (1, 1, 1, 1, 6)


def test_maps_with_channels_last_are_known_by_their_layout() -> None:
    class Last(nn.Module):
        def __init__(self, kind: type[nn.Module]) -> None:
            super().__init__()
            self.conv, self.norm = kind(2, 5, 3), nn.LayerNorm(5)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(self.conv(images).movedim(1, -1)).flatten(1)  # type: ignore[no-any-return]

    for kind, size in ((nn.Conv1d, (9,)), (nn.Conv3d, (5, 6, 7))):
        model = Last(kind).eval()
        (maps,) = trace_feature_maps(model, torch.rand(1, 2, *size), select_layers(model, "norm"))
        assert maps.site.channels_last
        assert maps.shape == (5, *(length - 2 for length in size))


def test_convolutions_are_those_of_the_networks_own_kind() -> None:
    attentive = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3))
    assert [layer.name for layer in select_layers(attentive)] == ["0"]
    assert [layer.name for layer in select_layers(nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()))] == ["0"]
    mixed = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv1d(1, 1, 3))
    assert image_axes(mixed) == 3
    assert [layer.name for layer in select_layers(mixed)] == ["0"]
