"""What `project` refuses, what it leaves alone, and how much of the network it runs."""

from __future__ import annotations

import re
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_cnnviz.core.deconvnet.projection import Projection, Projector, Unit, project
from lightning_cnnviz.core.network import memory
from lightning_cnnviz.core.network.layers import LayerNotFoundError, select_layers
from lightning_cnnviz.core.top_patches.search import mine_top_patches


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


IMAGES = torch.rand(4, 3, 14, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Sequential:
    net = small_net().eval()
    net(IMAGES)
    return net


@pytest.mark.parametrize(
    ("unit", "options", "error", "match"),
    [
        (Unit(0, "4", 8, 0, 0), {}, ValueError, "channel 8 is outside of layer '4'.* 8 x 5 x 4"),
        (Unit(0, "4", 0, 5, 0), {}, ValueError, "row 5 is outside"),
        (Unit(0, "4", 0, 0, -1), {}, ValueError, "column -1 is outside"),
        (Unit(0, "4", 0, 2), {}, ValueError, "both row and column, or neither"),
        (Unit(4, "4", 0, 0, 0), {}, ValueError, "there is no image 4; there are 4"),
        (Unit(0, "44", 0, 0, 0), {}, LayerNotFoundError, "44"),
        (Unit(0, "4", 0, 0, 0), {"method": "guide"}, ValueError, "'deconvnet', 'guided', 'gradient'"),
        (Unit(0, "4", 0, 0, 0), {"layers": "0"}, ValueError, r"\['4'\], which layers='0' does not choose"),
    ],
)
def test_wrong_units_are_refused(
    model: nn.Module, unit: Unit, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        project(model, IMAGES, [unit], **options)


def test_images_that_the_network_does_not_take_are_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"Sequential does not take images of shape \(3, 20, 20\)"):
        project(model, torch.rand(1, 3, 20, 20), [Unit(0, "4", 0, 0, 0)])
    with pytest.raises(ValueError, match=r"Sequential does not take images of shape .*unsigned char"):
        project(model, torch.zeros(1, 3, 14, 12, dtype=torch.uint8), [Unit(0, "4", 0, 0, 0)])


def test_a_deconvnet_without_nonlinearity_is_no_deconvnet() -> None:
    linear = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Sigmoid()).eval()
    images = torch.rand(1, 1, 9, 9)
    with pytest.raises(ValueError, match=r"no ReLU or similar.*method='gradient'"):
        project(linear, images, [Unit(0, "1", 0, 0, 0)])
    # One convolution has none before it, and needs none.
    assert project(linear, images, [Unit(0, "0", 0, 0, 0)]).pixels[0].shape == (1, 3, 3)


def test_the_strongest_unit_is_found_where_none_is_named(model: nn.Module) -> None:
    with torch.no_grad():
        maps = model[:5](IMAGES.clone())  # type: ignore[index]
    found = project(model, IMAGES, [(image, "4", channel) for image in range(4) for channel in range(8)])
    for unit in found.units:
        own = maps[unit.image, unit.channel]
        assert unit.row is not None
        assert unit.column is not None
        assert own[unit.row, unit.column] == own.max()
        assert unit.activation == pytest.approx(float(own.max()), abs=1e-5)


def test_one_by_one_is_as_all_together(model: nn.Module) -> None:
    units = [Unit(i, "4", c, r, k) for i in range(4) for c in (0, 5) for r in (0, 4) for k in (0, 3)]
    together = project(model, IMAGES, units)
    by_index = project(model, {7: IMAGES[2]}, [Unit(7, *unit[1:]) for unit in units if unit.image == 2])
    alone = [project(model, IMAGES, [unit]) for unit in units]
    for number, unit in enumerate(units):
        assert torch.allclose(together.pixels[number], alone[number].pixels[0], atol=1e-6)
        assert together.boxes[number].tolist() == alone[number].boxes[0].tolist()
        assert together.on_image(number).shape == (3, 14, 12)
        if unit.image == 2:
            place = [other for other in units if other.image == 2].index(unit)
            assert torch.allclose(by_index.pixels[place], together.pixels[number], atol=1e-6)


def test_images_of_several_sizes() -> None:
    net = small_net()[:6].eval()
    images = [torch.rand(3, 14, 12), torch.rand(3, 9, 17)]
    found = project(net, images, [Unit(0, "4", 0, 1, 1), Unit(1, "4", 0, 1, 5)])
    assert [found.on_image(number).shape for number in (0, 1)] == [(3, 14, 12), (3, 9, 17)]


def test_nothing_is_left_behind(model: nn.Module) -> None:
    model.train()
    model[1].eval()  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    images = IMAGES.clone()
    with torch.inference_mode():
        project(model, images, [Unit(0, "4", 0), Unit(1, "4", 2, 0, 0)], method="guided")
    assert torch.equal(images, IMAGES)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_comes_after_the_layer_does_not_run(model: nn.Module) -> None:
    runs = []
    projector = Projector(model, select_layers(model, ["0", "4"]))
    projector.project(IMAGES, [Unit(0, "0", 0, 0, 0, 1.0), Unit(0, "4", 0, 0, 0, 1.0)])
    model[3].register_forward_hook(lambda *_: runs.append("pool"))  # type: ignore[index]
    model[7].register_forward_hook(lambda *_: runs.append("linear"))  # type: ignore[index]
    projector.project(IMAGES, [Unit(0, "4", 0, 0, 0)])
    assert runs == ["pool"]  # to learn the way back and for the switches at once
    runs.clear()
    # The first layer's way back needs weights alone.
    projector.project(IMAGES, [Unit(image, "0", 0, 0, 0, 1.0) for image in range(4)])
    assert "linear" not in runs
    assert runs == []


def test_where_activations_are_known_the_pass_ends_with_the_last_switches() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 2)
    )
    units = [Unit(n, "5", n, 1, 1, 0.5 + n) for n in range(4)]
    batches = []
    net[3].register_forward_hook(lambda _module, given, _output: batches.append(len(given[0])))
    found = project(net, IMAGES, units)
    assert set(batches) == {1}  # the structure alone: four images stop at the pooling
    unknown = project(net, IMAGES, [unit._replace(activation=None) for unit in units])
    for number in range(4):
        scaled = found.on_image(number) / units[number].activation * unknown.units[number].activation
        assert torch.allclose(unknown.on_image(number), scaled, rtol=1e-5, atol=1e-7)


class Moody(nn.Module):
    """What it does depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.first(images))
        if float(images[0, 0, 0, 0]) > 0.5:
            maps = maps * 2
        return self.second(nn.functional.max_pool2d(maps, 2))


def test_a_pass_that_depends_on_the_image_is_made_to_its_end() -> None:
    net, images = Moody(), torch.rand(40, 3, 12, 12)
    images[:, 0, 0, 0] = 0.0
    images[-1, 0, 0, 0] = 1.0
    # One image a pass: the way back that the first image shows is not that of the last.
    units = [Unit(n, "second", 1, 1, 1, 1.0) for n in (0, 39)]
    alone = project(net, images[39:], [units[1]._replace(image=0)])
    first = project(net, images, units[:1])
    with mock.patch("lightning_cnnviz.core.deconvnet.projection._IMAGES", 1):
        found = project(net, images, units)
    assert torch.equal(found.on_image(1), alone.on_image(0))
    assert torch.equal(found.on_image(0), first.on_image(0))
    assert not torch.allclose(found.pixels[0], found.pixels[1])


def test_mined_units_are_read_behind_their_batch_norm(model: nn.Sequential) -> None:
    model[1].weight.data.mul_(-2)
    found = mine_top_patches(model, [IMAGES], k=2)["0"]
    unit = Unit(int(found.images[3, 0]), "0", 3, int(found.rows[3, 0]), int(found.columns[3, 0]))
    behind = project(model, IMAGES, [unit], layers="conv")
    assert behind.units[0].activation == pytest.approx(float(found.activations[3, 0]), rel=1e-5)
    assert behind.units[0].activation != project(model, IMAGES, [unit]).units[0].activation
    assert behind.boxes[0].tolist() == found.boxes[3, 0].tolist()


class Whole(nn.Module):
    """Small whole numbers as weights, for which bfloat16 is exact; a block that is checkpointed, and a residual sum."""

    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False))
        self.last = nn.Conv2d(4, 3, 3, bias=False)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = (torch.rand(parameter.shape, generator=generator) < 0.1).float()
            parameter.data[::2] *= -1

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.max_pool2d(torch.relu(self.stem(images)), 2)
        body = checkpoint(self.block, maps, use_reentrant=False) if self.checkpointing else self.block(maps)
        return self.last(torch.relu(maps + body))  # type: ignore[no-any-return]


WHOLE = torch.randint(0, 3, (4, 2, 12, 14), generator=torch.Generator().manual_seed(2)).float()
UNITS = [Unit(image, "last", channel, row, image) for image in range(4) for channel in range(3) for row in range(3)]


def assert_equal_projections(first: Projection, second: Projection) -> None:
    assert first.units == second.units
    assert any(bool(pixels.any()) for pixels in first.pixels)
    assert all(torch.equal(a, b) for a, b in zip(first.pixels, second.pixels, strict=True))


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_bfloat16_autocast_projects_the_same_units(method: Any) -> None:
    expected = project(Whole(), WHOLE, UNITS, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        found = project(Whole(), WHOLE, UNITS, method=method)
    assert_equal_projections(found, expected)
    assert all(pixels.dtype == torch.float32 for pixels in found.pixels)


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_channels_last_is_as_contiguous(method: Any) -> None:
    expected = project(Whole(), WHOLE, UNITS, method=method)
    model = Whole().to(memory_format=torch.channels_last)
    assert_equal_projections(
        project(model, WHOLE.to(memory_format=torch.channels_last), UNITS, method=method), expected
    )


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_gradient_checkpointing_changes_nothing(method: Any) -> None:
    model = Whole(checkpointing=True).train()
    assert_equal_projections(project(model, WHOLE, UNITS, method=method), project(Whole(), WHOLE, UNITS, method=method))
    assert all(parameter.grad is None for parameter in model.parameters())


class Switching(Whole):
    """It goes into inference mode by itself: there, torch dispatches `conv2d`, `relu6` and such."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            maps = nn.functional.relu6(super().forward(images))
            return maps * 2


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_a_network_that_goes_into_inference_mode_by_itself(method: Any) -> None:
    expected = project(Whole(), WHOLE, UNITS, method=method)
    assert_equal_projections(project(Switching(), WHOLE, UNITS, method=method), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("frozen", [False, True])
def test_units_behind_a_traced_network(method: Any, frozen: bool) -> None:
    body, head = Whole().eval(), nn.Conv2d(3, 2, 2)
    units = [unit._replace(layer="2", channel=unit.channel % 2) for unit in UNITS]
    traced = torch.jit.trace(body, WHOLE)
    model = nn.Sequential(torch.jit.freeze(traced) if frozen else traced, nn.ReLU(), head)
    expected = project(nn.Sequential(body, nn.ReLU(), head), WHOLE, units, method=method)
    assert_equal_projections(project(model, WHOLE, units, method=method), expected)
    assert torch.equal(project(model, WHOLE, units, method=method).boxes, expected.boxes)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("make", [lambda model: torch.jit.trace(model, WHOLE), torch.jit.script])
def test_layers_inside_of_what_torch_jit_has_made_are_refused(make: Any) -> None:
    model = make(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval())
    for network, layer in ((model, "2"), (nn.Sequential(model), "0.2")):
        message = f"layer '{layer}' is part of a network that torch.jit has traced, scripted or frozen"
        with pytest.raises(LayerNotFoundError, match=re.escape(message)):
            project(network, WHOLE, [Unit(0, layer, 0, 1, 1)])


def test_results_written_to_given_memory() -> None:
    class Into(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            maps, there = self[0](x), self[0](x.flip(3))
            torch.add(maps, self[1](x), out=there)
            return self[2](torch.relu(there))  # type: ignore[no-any-return]

    class Apart(Into):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](torch.relu(self[0](x) + self[1](x)))  # type: ignore[no-any-return]

    layers = [nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 2)]
    units = [unit._replace(layer="2") for unit in UNITS]
    assert_equal_projections(project(Into(*layers), WHOLE, units), project(Apart(*layers), WHOLE, units))


def test_weights_that_change_between_looks_are_seen(model: nn.Sequential) -> None:
    projector = Projector(model, select_layers(model, ["1", "4"]))
    for layer in ("1", "4"):  # one of them needs no pass: its way is made of weights alone
        unit = Unit(0, layer, 2, 1, 1, 1.0)
        before = projector.project(IMAGES, [unit])
        with torch.no_grad():
            model[0].weight.mul_(2)
            model[1].running_var.add_(1)
        after = projector.project(IMAGES, [unit])
        assert not torch.equal(before.pixels[0], after.pixels[0])
        assert torch.equal(after.pixels[0], project(model, IMAGES, [unit]).pixels[0])


def test_known_units_run_each_image_once_and_only_as_far_as_the_last_switches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *[nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)],
    )
    images = torch.rand(20, 3, 12, 12)
    layers = select_layers(net, ["3", "5"])
    projector = Projector(net, layers)
    projector.check(images[:1])
    ran: dict[str, list[int]] = {}
    for name, module in net.named_children():
        module.register_forward_pre_hook(lambda _, given, name=name: ran.setdefault(name, []).append(len(given[0])))
    units = [Unit(image, layer, 1, 2, 2, 1.0) for image in range(20) for layer in ("3", "5")]
    found = projector.project(images, units)
    # One image tells the way back; the others come in batches, and end with the pooling.
    assert ran["2"] == [1, 16, 4]
    assert ran["3"] == ran["5"] == [1]
    unknown = project(net, images, [unit._replace(activation=None) for unit in units])
    for one, other, unit in zip(found.pixels, unknown.pixels, unknown.units, strict=True):
        assert unit.activation is not None
        assert torch.allclose(one * unit.activation, other, atol=1e-6)


def test_pooling_windows_wider_than_the_map() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 2, 1))
    images = torch.rand(6, 1, 2, 2)
    units = [
        Unit(image, "3", channel, row, column)
        for image in range(6)
        for channel, row, column in product((0, 1), repeat=3)
    ]
    found = project(net, images, units)
    for number, unit in enumerate(found.units):
        maps = net[:2](images[unit.image])
        expected = torch.zeros(1, 2, 2)
        assert unit.activation is not None
        assert unit.row is not None
        assert unit.column is not None
        for feature in range(3):
            weight = net[3].weight[unit.channel, feature, 0, 0].relu()
            place = divmod(int(maps[feature].argmax()), 2)  # every window covers the whole map
            expected[0, place[0], place[1]] += unit.activation * weight * net[0].weight[feature, 0, 0, 0]
        assert torch.allclose(found.on_image(number), expected.detach(), atol=1e-6)


def test_with_little_memory_fewer_units_go_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    image = torch.rand(1, 1, 16, 16)
    units = [Unit(0, "3", channel, row, 1) for channel in range(4) for row in range(3)]
    whole = project(net, image, units)
    together = []
    for free in (2**30, 2**17, 1):
        monkeypatch.setattr(memory, "_free_bytes", lambda _device, free=free: free)
        projector = Projector(net, select_layers(net, ["3"]))
        same = projector.project(image, units)
        together += projector._units_at_once.values()
        assert all(torch.allclose(one, other) for one, other in zip(whole.pixels, same.pixels, strict=True))
    assert together[0] == 256
    assert 1 < together[1] < 256
    assert together[2] == 1


class Silenced(nn.Module):
    """Sets one channel to zero, in place in a slice or by a mask."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x)
        if self.in_place:
            maps[:, 1].zero_()
        else:
            maps = maps * torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 4, 1, 1)
        return self.second(maps.relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_channel_that_is_set_to_zero_in_place_is_not_seen(method: Any, memory: torch.memory_format) -> None:
    images, units = torch.rand(2, 1, 8, 8), [Unit(0, "second", 1, 3, 3), Unit(1, "second", 2, 1, 5)]
    images = images.to(memory_format=memory)
    nets = (Silenced(in_place).to(memory_format=memory) for in_place in (True, False))
    found, expected = (project(net, images, units, method=method) for net in nets)
    assert_equal_projections(found, expected)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float16), (1e-6, torch.bfloat16), (1e7, torch.bfloat16)])
def test_projections_for_pictures_lose_nothing_that_is_seen(scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3)).requires_grad_(False)
    images, units = torch.rand(2, 1, 20, 20), [Unit(0, "3", 5, 2, 4), Unit(1, "3", 7)]
    model[3].weight.mul_(scale)
    projector = Projector(model, select_layers(model, ["3"]))
    exact, rounded = projector.project(images, units), projector.project(images, units, for_pictures=True)
    assert torch.equal(exact.boxes, rounded.boxes)
    for one, other in zip(exact.pixels, rounded.pixels, strict=True):
        assert one.dtype == torch.float32
        assert other.dtype == dtype
        lost, largest = (one - other.float()).abs(), float(one.abs().max())
        assert float(lost.max()) <= (2**-11 if dtype == torch.float16 else 2**-9) * largest
        assert float(lost.max()) < largest / 255  # a level of a picture, of which 255 span both signs
