"""Operations that write in place, views in place among them, and windows stacked where images are, against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Method, ProjectionError, Unit, project

OTHER = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(3)).double() + 0.5


def then(change: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Change a tensor, whatever the change returns."""

    def run(maps: Tensor) -> Tensor:
        change(maps)
        return maps

    return run


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: lambda maps, name=name: getattr(maps, name)()  # type: ignore[misc]
        for name in ("tanh_", "sigmoid_", "relu_", "square_", "neg_", "erf_", "nan_to_num_")
    },
    **{
        name: lambda maps, name=name: getattr(maps, name)(OTHER)  # type: ignore[misc]
        for name in ("add_", "mul_", "div_", "atan2_", "hypot_")
    },
    "squeeze_": lambda maps: maps.unsqueeze_(2).squeeze_(2),
    "squeeze_ of several": lambda maps: maps.unsqueeze_(1).unsqueeze_(4).squeeze_((1, 4)),
    "transpose_": lambda maps: maps.transpose_(2, 3),
    "transpose_ of channels": lambda maps: maps.transpose_(1, 2),
    "as_strided_": lambda maps: maps.as_strided_(maps.shape, maps.stride()),
    "as_strided_ that turns": lambda maps: maps.as_strided_(
        maps.shape, (*maps.stride()[:2], maps.stride(3), maps.stride(2))
    ),
    "as_strided of a slice": lambda maps: maps[:, :, 1:].as_strided((len(maps), 4, 5, 6), maps.stride()),
    "as_strided of every other column": lambda maps: maps[..., ::2].as_strided(
        (len(maps), 4, 6, 3), maps[..., ::2].stride()
    ),
    "a slice rectified": then(lambda maps: maps[:, :2].relu_()),
    "halves rectified": lambda maps: torch.cat([half.sin_() for half in maps.chunk(2, 1)], 1) + maps,
    "a channel overwritten by constants": then(lambda maps: maps[:, 0].fill_(0.0)),
    "channels overwritten by others": then(lambda maps: maps[:, :2].copy_(maps[:, 2:].clone())),
    "rows written twice": then(lambda maps: (maps[:, :, 1:4].mul_(2), maps[:, :, 2:5].tanh_())),
    "written into constants": lambda maps: then(lambda zeros: zeros[:, 1:3].add_(maps[:, 1:3]))(torch.zeros_like(maps)),
    "constants over values": then(lambda maps: torch.add(torch.ones_like(maps[:, 1]), 1, out=maps[:, 1])),
    "masked by a comparison": lambda maps: maps.mul_(maps.gt(0)),
    "RReLU": nn.RReLU(inplace=True).eval(),
    "a sum of all": lambda maps: torch.zeros_like(maps).add_(maps.sum((1, 2, 3), keepdim=True)),
}


class Changed(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.change, self.last = nn.Conv2d(3, 4, 3), change, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.change(self.conv(images).clone()))
        return found


def by_autograd(model: nn.Module, images: Tensor, unit: Unit) -> Tensor:
    """One unit's gradient, times its activation `(C, H, W)`, as autograd finds it for its image alone."""
    image = images[unit.image : unit.image + 1].clone().requires_grad_()
    value = model(image)[0, unit.channel, unit.row, unit.column]
    if not value.requires_grad:
        return torch.zeros_like(images[0])
    (gradient,) = torch.autograd.grad(value, image, allow_unused=True)
    return torch.zeros_like(images[0]) if gradient is None else gradient[0] * float(value.detach())


def check(model: nn.Module, images: Tensor, layer: str, method: Method, expected: nn.Module | None = None) -> None:
    units = [Unit(image, layer, image % 2, 2, 1) for image in range(len(images))]
    projection = project(model, images, units, method=method)
    for number, unit in enumerate(projection.units):
        torch.testing.assert_close(projection.on_image(number), by_autograd(expected or model, images, unit))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels last"]
)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_writing_in_place_goes_back_as_autograd_has_it(
    change: Callable[[Tensor], Tensor], memory_format: torch.memory_format, request: pytest.FixtureRequest
) -> None:
    model = Changed(change).double().to(memory_format=memory_format).eval()
    images = torch.rand(3, 3, 8, 8).double().contiguous(memory_format=memory_format)
    reference: nn.Module = model
    if "halves" in request.node.name:  # autograd refuses to write into pieces; the same without writing
        reference = Changed(lambda maps: maps.sin() + maps.sin()).double().eval()
        reference.load_state_dict(model.state_dict())
    if "constants over values" in request.node.name:
        reference = Changed(lambda maps: torch.cat([maps[:, :1], torch.full_like(maps[:, 1:2], 2.0), maps[:, 2:]], 1))
        reference.double().eval().load_state_dict(model.state_dict())
    check(model, images, "last", "gradient", reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (then(lambda maps: torch._foreach_mul_([maps], 2.0)), r"_foreach_mul_.* cannot be followed back to the pixels"),
        (lambda maps: maps.abs_().add_(1).polygamma_(2), r"polygamma_.* cannot be followed back to the pixels"),
        (lambda maps: maps.resize_(len(maps), 4, 6, 6), "of which torch has no derivative"),
        (
            lambda maps: maps[:, :, 1:].as_strided((len(maps), 4, 5, 6), maps.stride(), 0),
            "reads memory by as_strided beyond the feature maps",
        ),
        (then(lambda maps: maps.view(torch.int64)[:, 0].copy_(maps[:, 1].long())), "as another kind of number"),
    ],
    ids=["written and not returned", "without a twin", "without a derivative", "beyond", "another kind"],
)
def test_what_cannot_be_followed_is_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    model = Changed(change).double().eval()
    with pytest.raises(ProjectionError, match=message):
        project(model, torch.rand(2, 3, 8, 8).double(), [Unit(0, "last", 1, 2, 1)], method="gradient")


class Guided(torch.autograd.Function):
    """A ReLU whose gradient is rectified."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return gradients[0].relu() * (values > 0)


class Windows(nn.Module):
    """Four windows of each image stacked in the first dimension, as window attention has them."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.inner, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.rectify = nn.InstanceNorm2d(4, affine=True, track_running_stats=True), rectify

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        windows = maps.view(-1, 4, 2, 6, 2, 6).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4, 6, 6)
        windows = F.max_pool2d(self.rectify(self.norm(self.inner(windows))), 2)
        maps = windows.view(-1, 2, 2, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 4, 4)
        found: Tensor = self.last(F.pad(maps, (1, 1, 1, 1)))
        return found


@pytest.mark.parametrize(
    ("rectify", "method"),
    [
        (F.relu, "gradient"),
        (F.gelu, "gradient"),
        (lambda windows: torch.maximum(windows, torch.zeros_like(windows)), "gradient"),
        (nn.RReLU().eval(), "gradient"),
        (F.relu, "guided"),
        (lambda windows: torch.maximum(windows, torch.zeros_like(windows)), "guided"),
    ],
    ids=["ReLU", "GELU", "maximum", "RReLU", "guided ReLU", "guided maximum"],
)
def test_each_window_has_its_own_slope(rectify: Callable[[Tensor], Tensor], method: Method) -> None:
    model = Windows(rectify).double().eval()
    nn.init.uniform_(model.norm.running_mean)  # type: ignore[arg-type]
    expected = None
    if method == "guided":
        expected = Windows(Guided.apply).double().eval()
        expected.load_state_dict(model.state_dict())
    check(model, torch.rand(3, 3, 12, 12).double(), "last", method, expected)


def test_attention_runs_in_steps_that_have_a_derivative() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 4, 4), nn.Identity()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            tokens = self.encoder(maps.flatten(2).transpose(1, 2))
            found: Tensor = self.last(tokens.transpose(1, 2).reshape(maps.shape))
            return found

    model = Attending().double().eval()
    check(model, torch.rand(2, 3, 16, 16).double(), "last", "gradient")
    assert torch.backends.mha.get_fastpath_enabled()
