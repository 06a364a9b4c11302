"""Where feature maps are read, and which of them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnviz.core.network.hooks import Site
from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.Dropout())


def test_feature_maps_are_read_behind_the_batchnorm_that_follows() -> None:
    model = net().eval()
    image = torch.zeros(1, 1, 9, 9)
    by_kind = trace_feature_maps(model, image, select_layers(model, "conv"))
    assert [maps.site for maps in by_kind] == [Site(model[1]), Site(model[3])]
    assert [maps.shape for maps in by_kind] == [(2, 7, 7), (3, 5, 5)]
    assert [maps.field.size for maps in by_kind] == [(3, 3), (5, 5)]
    by_name = trace_feature_maps(model, image, select_layers(model, ["0", "3"]))
    assert by_name[0].site == Site(model[0])


def test_a_batchnorm_behind_two_convolutions_is_not_read_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(self.a(images)) + self.norm(self.b(images))  # type: ignore[no-any-return]

    model = Shared().eval()
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model))
    assert [maps.site for maps in found] == [Site(model.a), Site(model.b)]


def test_tracing_in_training_moves_no_statistics() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace_feature_maps(model, torch.rand(1, 1, 9, 9), select_layers(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("layer", ["odd", "flat"])
def test_a_named_layer_without_feature_maps(layer: str) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
            return images, 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.odd, self.flat = nn.Conv2d(1, 2, 3), Odd(), nn.Flatten(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.flat(self.odd(self.conv(images))[0])  # type: ignore[no-any-return]

    model = Model()
    with pytest.raises(TypeError, match=f"layer '{layer}'.*returns no feature maps"):
        trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model, layer))


class Renamed(nn.Module):
    """A norm of the caller's own that holds its nonlinearity, as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.shift = nn.Parameter(torch.full((2, 1, 1), -3.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(images + self.shift)  # type: ignore[no-any-return]


Renamed.__name__ = "BatchNormAct"


def test_a_norm_that_holds_its_nonlinearity_is_read_before_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Renamed())
    (maps,) = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model))
    assert maps.site == Site(model[1].act, "input")


@pytest.mark.parametrize(
    ("between", "norm", "behind"),
    [
        (None, nn.BatchNorm2d(2), True),
        (None, nn.SyncBatchNorm(2), True),
        (None, torchvision.ops.FrozenBatchNorm2d(2), True),
        (nn.Identity(), nn.BatchNorm2d(2), True),
        (nn.ReLU(), nn.BatchNorm2d(2), False),
        (nn.MaxPool2d(2), nn.BatchNorm2d(2), False),
        (nn.Sequential(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2), None),
        (None, nn.GroupNorm(1, 2), False),
    ],
)
def test_which_norm_follows_directly(between: nn.Module | None, norm: nn.Module, behind: bool | None) -> None:
    parts = [nn.Conv2d(1, 2, 3), *([between] if between else []), norm]
    model = nn.Sequential(*parts).eval()
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model))
    if behind is None:  # the norm belongs to the second convolution
        assert [maps.site for maps in found] == [Site(model[0]), Site(norm)]
    else:
        assert [maps.site for maps in found] == [Site(norm) if behind else Site(model[0])]


def test_a_norm_that_is_chosen_itself_is_behind_its_convolution_all_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model, ["conv", "1", "2"]))
    sites = {"0": Site(model[1]), "1": Site(model[1]), "2": Site(model[2]), "3": Site(model[4])}
    assert {maps.layer: maps.site for maps in found} == sites


def test_layers_come_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(2, 2, 3), nn.Conv2d(1, 2, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.last(self.first(images)).mean((2, 3)))  # type: ignore[no-any-return]

    model = Backwards()
    found = trace_feature_maps(model, torch.zeros(1, 1, 9, 9), select_layers(model, ["head", "last", "first"]))
    assert [maps.layer for maps in found] == ["first", "last", "head"]
    assert [maps.shape for maps in found] == [(2, 7, 7), (2, 5, 5), (3, 1, 1)]
    assert found[2].field.boxes.tolist() == [[[[0, 0, 9, 9]]]]


def test_a_network_that_writes_to_its_input_does_not_change_ours() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images.sub_(1).div_(2))  # type: ignore[no-any-return]

    model, image = InPlace(), torch.rand(1, 1, 9, 9)
    before = image.clone()
    (maps,) = trace_feature_maps(model, image, select_layers(model))
    assert torch.equal(image, before)
    assert maps.field.size == (3, 3)
