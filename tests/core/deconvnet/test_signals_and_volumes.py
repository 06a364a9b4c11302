"""Projections of units of networks of signals and of volumes, against an explicit deconvnet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference.deconvnet_axes import explicit_projection, rectified
from reference.other_axes import Block1d, Branches3d, ecg_resnet, small_r3d
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock

from lightning_cnnviz import Unit, project
from lightning_cnnviz.core.deconvnet.projection import Method

METHODS: list[Method] = ["deconvnet", "guided", "gradient"]


def random_norms(model: nn.Module) -> Any:
    """In float64, with statistics that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for part, ends in (
                (module.running_mean, (-0.3, 0.3)),
                (module.running_var, (0.5, 2)),
                (module.bias, (-0.3, 0.3)),
            ):
                nn.init.uniform_(part, *ends)  # type: ignore[arg-type]
    return model.double().eval().requires_grad_(False)


def paths(block: nn.Module) -> tuple[list[Any], list[Any]]:
    """The layers of a residual block: its main path and its shortcut."""
    if isinstance(block, Block1d):
        return [block.conv1, block.bn1, block.relu, block.conv2, block.bn2], list(block.shortcut)
    assert isinstance(block, BasicBlock)
    return [*block.conv1, *block.conv2], list(block.downsample or [])


def ways(model: Any) -> dict[str, list[Any]]:
    """By layer, what leads to it: convolutions that were chosen by kind are read behind their BatchNorm."""
    names = {id(module): name for name, module in model.named_modules()}
    blocks = [each for each in model.modules() if isinstance(each, Block1d | BasicBlock)]
    inside = {id(part) for block in blocks for part in block.modules()}
    found: dict[str, list[Any]] = {}
    before: list[Any] = []
    for module in model.modules():
        if isinstance(module, Block1d | BasicBlock):
            main, shortcut = paths(module)
            for path in (main, shortcut):
                for number, layer in enumerate(path):
                    if isinstance(layer, nn.modules.conv._ConvNd):
                        found[names[id(layer)]] = [*before, *path[: number + 2]]
            before.append((main, shortcut))
        elif id(module) not in inside and not list(module.children()):
            before.append(module)
            if isinstance(module, nn.modules.conv._ConvNd):
                found[names[id(module)]] = [*before, None]
            elif found and next(reversed(found.values()))[-1] is None:
                next(reversed(found.values()))[-1] = module
    return found


def strongest(activations: Tensor) -> tuple[int, ...]:
    """Where a map is largest."""
    return tuple(int(place) for place in torch.unravel_index(activations.argmax(), activations.shape))


@pytest.mark.parametrize(
    ("make", "size", "layers"),
    [
        pytest.param(ecg_resnet, (3, 90), None, id="signals"),
        pytest.param(small_r3d, (3, 4, 16, 16), ["stem.0", "layer1.0.conv2.0"], id="r3d_18, two layers"),
        pytest.param(small_r3d, (3, 8, 32, 32), None, id="r3d_18", marks=pytest.mark.slow),
    ],
)
def test_projections_are_those_of_an_explicit_deconvnet(
    make: Callable[[], nn.Module], size: tuple[int, ...], layers: list[str] | None
) -> None:
    torch.manual_seed(1)
    model, image = random_norms(make()), torch.randn(1, *size, dtype=torch.float64)
    known = ways(model)
    for layer in known if layers is None else layers:
        for method in METHODS:
            projected = project(
                model, image, [Unit(0, layer, channel) for channel in (0, 3)], method=method, layers="conv"
            )
            for number, unit in enumerate(projected.units):
                place = (unit.row, unit.column) if unit.depth is None else (unit.depth, unit.row, unit.column)
                own = (unit.column,) if image.ndim == 3 else place
                expected, activation = explicit_projection(known[layer], image, unit.channel, own, method)  # type: ignore[arg-type]
                assert unit.activation == pytest.approx(activation, abs=1e-9)
                torch.testing.assert_close(projected.on_image(number), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("layer", ["stem", "left", "right", "last"])
def test_volumes_of_other_forms_go_back_as_autograd_that_rectifies(layer: str) -> None:
    torch.manual_seed(2)
    model = random_norms(Branches3d())
    volumes = torch.randn(2, 2, 5, 18, 21, dtype=torch.float64)
    units = [Unit(image, layer, channel) for image in (0, 1) for channel in (0, 2)]
    for method in ("deconvnet", "gradient"):
        if layer == "stem" and method == "deconvnet":
            continue
        found = project(model, volumes, units, method=method)  # type: ignore[arg-type]
        for number, unit in enumerate(found.units):
            given, made = volumes[unit.image][None].clone().requires_grad_(), list[Tensor]()
            handle = model.get_submodule(layer).register_forward_hook(
                lambda _m, _i, out, made=made: made.append(out * 1)
            )
            with rectified() if method == "deconvnet" else torch.enable_grad():
                model(given)
            handle.remove()
            own = made[0][0, unit.channel]
            assert (unit.depth, unit.row, unit.column) == strongest(own)
            value = own.max()
            (gradient,) = torch.autograd.grad(value, given)
            torch.testing.assert_close(found.on_image(number), (gradient * value).detach()[0], rtol=1e-7, atol=1e-10)
            assert gradient[0].abs().sum() > 0


def test_pooling_of_volumes_with_gaps_and_overlaps() -> None:
    torch.manual_seed(3)
    pool = nn.MaxPool3d((2, 3, 2), stride=(1, 2, 1), padding=(1, 1, 0), dilation=(1, 1, 2), ceil_mode=True)
    model = random_norms(nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), pool, nn.Conv3d(3, 2, 2)))
    volume = torch.randn(1, 1, 4, 8, 7, dtype=torch.float64)
    found = project(model, volume, [Unit(0, "3", 0, 1, 2, None, 1), Unit(0, "3", 1, 0, 0, None, 0)], method="gradient")
    for number, unit in enumerate(found.units):
        given = volume.clone().requires_grad_()
        value = model(given)[0, unit.channel, unit.depth, unit.row, unit.column]
        (gradient,) = torch.autograd.grad(value, given)
        torch.testing.assert_close(found.on_image(number), (gradient * value).detach()[0], rtol=1e-9, atol=1e-12)


def test_wrong_places_and_images_are_refused() -> None:
    signals, volumes = ecg_resnet().eval(), Branches3d().eval()
    with pytest.raises(
        ValueError, match=r"column 45 is outside of layer '0', .* 6 x 1 x 45 \(channels, rows, columns\)"
    ):
        project(signals, torch.rand(1, 3, 90), [Unit(0, "0", 0, 0, 45)], method="gradient")
    with pytest.raises(ValueError, match="give depth, row and column, or none of them"):
        project(volumes, torch.rand(1, 2, 5, 18, 21), [Unit(0, "stem", 0, 1, 1)], method="gradient")
    with pytest.raises(ValueError, match=r"signals are float tensors \(C, L\); its convolutions are Conv1d"):
        project(signals, torch.rand(1, 3, 9, 9), [Unit(0, "0", 0)])
    with pytest.raises(ValueError, match=r"clips and volumes are float tensors \(C, D, H, W\)"):
        project(volumes, torch.rand(1, 2, 9, 9), [Unit(0, "stem", 0)])
