from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.support import Compute, See, change_boxes, nan_boxes
from torch import Tensor, nn

from lightning_cnnviz.core.tracing.receptive_field import BoundsMode, ReceptiveField

SIZES = ((64, 64), (65, 79), (90, 71))
# Image sizes by network: those that need more, and smaller ones where a pass is expensive.
NETWORKS: dict[str, tuple[tuple[int, int], ...]] = {
    "alexnet": ((64, 64), (97, 80), (75, 101)),
    "vgg11_bn": ((32, 32), (47, 38), (33, 65)),
    "resnet18": SIZES,
    "resnext50_32x4d": ((32, 32), (65, 47), (38, 75)),
    "squeezenet1_0": SIZES,
    "squeezenet1_1": SIZES,
    "densenet121": ((32, 32), (65, 47), (38, 75)),
    "googlenet": SIZES,
    "inception_v3": ((75, 75), (76, 81), (95, 83)),
    "shufflenet_v2_x1_0": SIZES,
    "mobilenet_v2": SIZES,
    "mobilenet_v3_small": SIZES,
    "efficientnet_b0": ((32, 32), (65, 47), (38, 75)),
    "regnet_x_400mf": SIZES,
    "regnet_y_400mf": SIZES,
    "mnasnet0_5": SIZES,
    "convnext_tiny": ((64, 64), (65, 79), (79, 38)),
}


def random_network(name: str) -> nn.Module:
    """A torchvision network with random weights that keep activations in range; without its large linear layers."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": False}
    with pytest.MonkeyPatch.context() as patch:
        # The initial weights are replaced anyway, and drawing them takes longer than all that is tested.
        for function in ("trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "normal_"):
            patch.setattr(nn.init, function, lambda tensor, *_args, **_options: tensor)
        network = torchvision.models.get_model(name, **options)
    if name.startswith(("alexnet", "vgg")):
        network.classifier = nn.Identity()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 3
            parameter.uniform_(-1, 1, generator=generator).mul_((3 / fan_in) ** 0.5)
    return network.eval().requires_grad_(False)


# What others of their kind, or the test of every operation, try as well.
_LARGE = ("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "resnext50_32x4d")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in _LARGE)) for name in sorted(NETWORKS)],
)
def network(request: pytest.FixtureRequest) -> nn.Module:
    made = random_network(request.param)
    made.__dict__["sizes"] = NETWORKS[request.param]
    return made


def convolutions(model: nn.Module) -> Compute:
    """Computes the network, and shows the output of each convolution."""

    def compute(image: Tensor, see: See) -> None:
        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, name=name: see(name, output))
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
        try:
            model(image)
        finally:
            for handle in handles:
                handle.remove()

    return compute


def followed(compute: Compute, image: Tensor) -> dict[str, Tensor]:
    """What BoundsMode says, as the reference gives it: `(C, H, W, 4)` int64 by name; zeros where nothing is reached."""
    bounds = BoundsMode()
    boxes: dict[str, Tensor] = {}

    def see(name: str, value: Tensor) -> None:
        field = bounds.receptive_field(name, value)
        shape = (value.shape[1], *(value.shape[2:] or (1, 1)))
        found = torch.zeros(1, 1, 1, 4, dtype=torch.int16) if field is None else field.boxes
        boxes[name] = found.long().expand(*shape, 4)

    with torch.no_grad(), bounds.follow(image):
        compute(image, see)
    return boxes


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, boxes in expected.items():
        wrong = (found[name] != boxes.reshape(found[name].shape)).any(-1).nonzero()
        if len(wrong):
            unit = tuple(wrong[0].tolist())
            got, true = found[name][unit].tolist(), boxes.reshape(found[name].shape)[unit].tolist()
            pytest.fail(f"{name}: {len(wrong)} units, the first {unit}, have the box {got} instead of {true}")


def assert_contains(found: Tensor, expected: Tensor) -> None:
    expected = expected.reshape(found.shape)
    reached = expected[..., 2] > 0
    inside = (found[..., :2] <= expected[..., :2]) & (found[..., 2:] >= expected[..., 2:])
    assert bool(inside.all(-1)[reached].all())


# Real networks


def test_every_convolution_has_exactly_the_box_that_it_depends_on(network: nn.Module) -> None:
    compute = convolutions(network)
    for height, width in network.__dict__["sizes"]:
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = nan_boxes(compute, image)
        assert len(expected) >= 5
        assert_same(followed(compute, image), expected)


def clones_into(values: dict[str, Tensor]) -> See:
    return lambda name, value: values.__setitem__(name, value.clone())


Units = list[tuple[str, Tensor, int, int, list[int]]]


def some_units(boxes: dict[str, Tensor], size: tuple[int, int]) -> Units:
    """A few units, with the channels that share their box: of layers early, in the middle, and before all is seen."""
    # Unless all of its units depend on the whole image, a layer says something.
    telling = [name for name, found in boxes.items() if not bool((found == torch.tensor([0, 0, *size])).all())]
    units: Units = []
    for name in dict.fromkeys((telling[0], telling[len(telling) // 2], telling[-1])):
        _, height, width, _ = boxes[name].shape
        for row, column in {(0, 0), (height // 2, width // 2), (height - 1, width - 2)}:
            box = boxes[name][0, row, column]
            channels = (boxes[name][:, row, column] == box).all(-1).nonzero().flatten()
            units.append((name, channels, row, column, box.tolist()))
    return units


def test_pixels_outside_the_box_do_not_matter_and_each_of_its_edges_does(network: nn.Module) -> None:
    compute = convolutions(network)
    size = network.__dict__["sizes"][-1]
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, *size, generator=generator)

    def noise(strength: float) -> Tensor:
        return strength * torch.randn(1, 3, *size, generator=generator)

    for name, channels, row, column, (top, left, bottom, right) in some_units(followed(compute, image), size):
        outside = 1 - _ones(size, slice(top, bottom), slice(left, right))
        edges = [
            _ones(size, slice(top, top + 1), slice(left, right)),
            _ones(size, slice(bottom - 1, bottom), slice(left, right)),
            _ones(size, slice(top, bottom), slice(left, left + 1)),
            _ones(size, slice(top, bottom), slice(right - 1, right)),
        ]
        changed = [image, image + noise(100) * outside]
        # A nonlinearity may hide one change, not all of them; and of what enters at the very edge, every layer passes
        # on a small part, which rounding hides unless it is large.
        changed += [image + noise(strength) * edge for strength in (10, 1e6, 1e12) for edge in edges]
        values: dict[str, Tensor] = {}
        with torch.no_grad():
            compute(torch.cat(changed), clones_into(values))
        unit = values[name][:, channels, row, column]
        assert torch.equal(unit[1], unit[0]), f"{name} {row, column} depends on a pixel outside of its box"
        moved = (unit[2:] != unit[0]).any(1).view(3, 4).any(0)
        assert moved.tolist() == [True] * 4, f"{name} {row, column}: an edge of its box does not matter"


def _ones(size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    ones = torch.zeros(size)
    ones[rows, columns] = 1
    return ones


def test_the_gradient_stays_inside_the_box(network: nn.Module) -> None:
    compute = convolutions(network)
    size = network.__dict__["sizes"][-1]
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)).requires_grad_()
    units = some_units(followed(compute, image.detach()), size)
    values: dict[str, Tensor] = {}
    compute(image, values.__setitem__)
    found = 0
    for name, channels, row, column, (top, left, bottom, right) in units:
        unit = values[name][0, channels, row, column].sum()
        (gradient,) = torch.autograd.grad(unit, image, retain_graph=True)
        support = (gradient != 0).any(1)[0]
        found += int(support.any())
        support[top:bottom, left:right] = False
        assert not bool(support.any())
    assert found > len(units) // 2


@pytest.mark.parametrize(("name", "layer", "size"), [
    ("alexnet", "features.10", 163), ("alexnet", "features.12", 195),
    ("vgg16", "features.28", 196), ("vgg16", "features.30", 212),
])  # fmt: skip
def test_published_sizes(name: str, layer: str, size: int) -> None:
    # On the meta device there are no values: boxes follow from shapes alone.
    with torch.device("meta"):
        model, image = torchvision.models.get_model(name), torch.zeros(1, 3, 512, 512)
    bounds, fields = BoundsMode(), []
    chosen = model.get_submodule(layer)
    chosen.register_forward_hook(lambda *call: fields.append(bounds.receptive_field(layer, call[2])))
    with torch.no_grad(), bounds.follow(image):
        model(image)
    assert fields[0].size == (size, size)


# Small graphs, at random. Every step takes and gives four feature maps, so that any step can follow any other.

CHANNELS = 4


def weights(*shape: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator, dtype=like.dtype) + 0.1


def conv(x: Tensor, kernel: tuple[int, int], groups: int = 1, out: int = CHANNELS, **options: Any) -> Tensor:
    return F.conv2d(x, weights(out, x.shape[1] // groups, *kernel, like=x), groups=groups, **options)


def padded_conv(x: Tensor, pad: tuple[int, int, int, int], mode: str, kernel: tuple[int, int]) -> Tensor:
    return conv(F.pad(x, pad, mode=mode), kernel)


def circular_module(x: Tensor, mode: str, kernel: tuple[int, int]) -> Tensor:
    module = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=1, padding_mode=mode, bias=False, dtype=x.dtype)
    module.weight.data.copy_(weights(CHANNELS, CHANNELS, *kernel, like=x))
    return module(x)


def same_conv(x: Tensor, kernel: tuple[int, int], dilation: int = 1, **options: Any) -> Tensor:
    """As padding="same", which warns of even kernels."""
    if kernel[0] % 2 and kernel[1] % 2:
        return conv(x, kernel, padding="same", dilation=dilation, **options)
    spare = [dilation * (length - 1) for length in kernel]
    pad = (spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2)
    return conv(F.pad(x, pad), kernel, dilation=dilation, **options)


def transposed(x: Tensor, kernel: tuple[int, int], groups: int, **options: Any) -> Tensor:
    return F.conv_transpose2d(x, weights(CHANNELS, CHANNELS // groups, *kernel, like=x), groups=groups, **options)


def pool(x: Tensor, kind: str, kernel: tuple[int, int], stride: int, ceil: bool, padding: int) -> Tensor:
    if kind == "max":
        return F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode=ceil)


def dilated_max_pool(x: Tensor, kernel: tuple[int, int], dilation: int) -> Tensor:
    return nn.MaxPool2d(kernel, 1, dilation=dilation)(x)


def adaptive(x: Tensor, kind: str, out: tuple[int, int]) -> Tensor:
    return F.adaptive_max_pool2d(x, out) if kind == "max" else F.adaptive_avg_pool2d(x, out)


def residual(x: Tensor, kernel: tuple[int, int], in_place: bool) -> Tensor:
    branch = same_conv(F.relu(x), kernel)
    if in_place:
        branch += x
        return branch
    return x + branch


def misaligned_concat(x: Tensor, kernel: tuple[int, int], shift: int) -> Tensor:
    shifted = F.pad(x, (shift, -shift, -shift, shift))
    return torch.cat([same_conv(x, kernel, out=1), shifted[:, :1], conv(x, (1, 1), out=2)], 1)


def grouped_and_shuffled(x: Tensor, kernel: tuple[int, int], builtin: bool) -> Tensor:
    x = same_conv(x, kernel, groups=2)
    if builtin:
        return F.channel_shuffle(x, 2)
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def split_branches(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return torch.cat([left, same_conv(right, kernel, out=2)], 1)


def folded_groups(x: Tensor, kernel: tuple[int, int], groups: int) -> Tensor:
    """Groups of channels as so many images, as cross-scale attention modules do."""
    n, c, h, w = x.shape
    folded = torch.cat([x[:, :2], conv(x, (3, 3), padding=1, out=2)], 1).reshape(n * 2, c // 2, h, w)
    return same_conv(folded, kernel, groups=groups, out=2).reshape(n, c, h, w)


def shortcut(x: Tensor) -> Tensor:
    """Option A of He et al.: every other pixel, and feature maps of zeros."""
    return F.pad(x[:, 1:3, ::2, ::2], (0, 0, 0, 0, 1, 1))


def nearest(x: Tensor, scale: float | None, size: tuple[int, int] | None, mode: str) -> Tensor:
    return F.interpolate(x, size=size, scale_factor=None if size else scale, mode=mode)


def resized(x: Tensor, mode: str, scale: float | None, size: tuple[int, int] | None, corners: bool) -> Tensor:
    return F.interpolate(x, size=size, scale_factor=None if size else scale, mode=mode, align_corners=corners)


def pointwise(x: Tensor, kind: str) -> Tensor:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu, "relu_": lambda x: F.relu_(x.clone()), "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
        "elu": F.elu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "hardswish": F.hardswish, "relu6": F.relu6,
        "hardsigmoid": F.hardsigmoid, "softplus": F.softplus, "tanh": torch.tanh, "celu": F.celu, "selu": F.selu,
        "prelu": lambda x: F.prelu(x, weights(CHANNELS, like=x)), "clamp": lambda x: x.clamp(0, 6),
        "rrelu": F.rrelu, "dropout": lambda x: F.dropout(x, training=False), "abs": torch.abs, "square": lambda x: x**2,
        "where": lambda x: torch.where(torch.ones_like(x) > 0, x, -x), "mul_": lambda x: x.clone().mul_(2).add_(1),
        "to": lambda x: x.double().to(x.dtype), "contiguous": lambda x: x.to(memory_format=torch.channels_last),
        "scale": lambda x: x * weights(CHANNELS, 1, 1, like=x), "detach": lambda x: x.detach(),
        "softsign": F.softsign, "hardtanh": F.hardtanh, "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    }  # fmt: skip
    return functions[kind](x)


def norm(x: Tensor, kind: str) -> Tensor:
    c, w = CHANNELS, weights(CHANNELS, like=x)
    if kind == "batch":
        return F.batch_norm(x, w, w, w, w)
    if kind == "instance":
        return F.instance_norm(x)
    if kind == "layer":
        return F.layer_norm(x.permute(0, 2, 3, 1), (c,)).permute(0, 3, 1, 2)
    if kind == "layer first":
        mean = x.mean(1, keepdim=True)
        return (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1).sqrt()
    if kind == "global response":
        norms = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return x * norms / norms.mean(1, keepdim=True)
    if kind == "local response":
        return F.local_response_norm(x, 3)
    return F.group_norm(x, 2, w, w)


def spatial_attention(x: Tensor, kernel: tuple[int, int], kind: str) -> Tensor:
    summary = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    if kind == "sum":
        summary = torch.stack([x.sum(1), x.amin(1)], 1)
    elif kind == "std":
        summary = torch.cat([x.std(1, keepdim=True), x.var(1, keepdim=True)], 1)
    return x * torch.sigmoid(same_conv(summary, kernel, out=1))


def channel_mixing(x: Tensor, kind: str) -> Tensor:
    mix = weights(CHANNELS, CHANNELS, like=x)
    if kind == "linear":
        return F.linear(x.permute(0, 2, 3, 1), mix, mix[0]).permute(0, 3, 1, 2)
    if kind == "matmul":
        return (mix @ x.flatten(2)).view_as(x)
    if kind == "softmax":
        return x.softmax(1)
    return torch.einsum("nchw,oc->nohw", x, mix)


def rearranged(x: Tensor, kind: str) -> Tensor:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "flip": lambda x: x.flip(2), "roll": lambda x: x.roll((1, 2), (2, 3)), "transpose": lambda x: x.transpose(2, 3),
        "crop": lambda x: x[:, :, 1:, :-1], "index": lambda x: x[:, torch.tensor([2, 0, 3, 1])],
        "select": lambda x: torch.stack([x[:, c] for c in (3, 3, 0, 1)], 1),
        "space to depth": lambda x: conv(F.pixel_unshuffle(x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2], 2), (1, 1)),  # noqa: E501
        "depth to space": lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
        "focus": lambda x: torch.cat([x[:, :1, i : x.shape[2] // 2 * 2 : 2, j : x.shape[3] // 2 * 2 : 2] for i in (0, 1) for j in (0, 1)], 1),  # noqa: E501
        "expand": lambda x: x[:, :1].expand_as(x), "unbind": lambda x: torch.cat(x.unsqueeze(2).unbind(1)[::-1], 1),
        "index_select": lambda x: x.index_select(1, torch.tensor([1, 1, 0, 2])),
        "shift": lambda x: torch.cat([F.pad(x[:, :2, 1:], (0, 0, 0, 1)), x[:, 2:]], 1),
        "movedim": lambda x: x.movedim(1, 3).contiguous().movedim(3, 1), "narrow": lambda x: x.narrow(2, 1, x.shape[2] - 1),  # noqa: E501
        "windows": lambda x: x.unfold(2, 2, 1).unfold(3, 3, 2).mean((-1, -2)),
    }  # fmt: skip
    return functions[kind](x)


def squeezed(x: Tensor, kind: str) -> Tensor:
    if kind == "excite":
        return x * torch.sigmoid(conv(x.mean((2, 3), keepdim=True), (1, 1)))
    if kind == "rows":
        return x * x.mean(3, keepdim=True).sigmoid()
    return x + x.amax(2, keepdim=True)


STEPS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        *(conv, padded_conv, circular_module, same_conv, transposed, pool, dilated_max_pool, adaptive, residual),
        *(misaligned_concat, grouped_and_shuffled, split_branches, folded_groups, shortcut, nearest, resized),
        *(pointwise, norm, spatial_attention, channel_mixing, rearranged, squeezed),
    )
}

kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
pads = st.integers(-1, 3)
flags = st.booleans()
sizes = st.one_of(st.none(), st.tuples(st.integers(1, 14), st.integers(1, 14)))
POINTWISE = [
    *("relu", "relu_", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "relu6", "hardsigmoid", "softplus"),
    *("tanh", "celu", "selu", "prelu", "clamp", "rrelu", "dropout", "abs", "square", "where", "mul_", "to"),
    *("contiguous", "scale", "detach", "softsign", "hardtanh", "threshold"),
]
REARRANGED = [
    *("flip", "roll", "transpose", "crop", "index", "select", "space to depth", "depth to space", "focus", "expand"),
    *("unbind", "index_select", "shift", "movedim", "narrow", "windows"),
]

Step = tuple[str, dict[str, Any]]


def step(name: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.fixed_dictionaries(options).map(lambda chosen: (name, chosen))


linear_steps = (
    step("conv", kernel=kernels, groups=st.sampled_from([1, 2, 4]), stride=st.tuples(*[st.integers(1, 3)] * 2),
         padding=st.tuples(*[st.integers(0, 3)] * 2), dilation=st.tuples(*[st.integers(1, 2)] * 2)),
    step("padded_conv", kernel=kernels, pad=st.tuples(pads, pads, pads, pads),
         mode=st.sampled_from(["constant", "reflect", "replicate", "circular"])),
    step("circular_module", kernel=kernels, mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    step("same_conv", kernel=kernels, dilation=st.integers(1, 2)),
    step("transposed", kernel=kernels, groups=st.sampled_from([1, 2, 4]), stride=st.tuples(*[st.integers(1, 3)] * 2),
         padding=st.tuples(*[st.integers(0, 2)] * 2), output_padding=st.integers(0, 1), dilation=st.integers(1, 2)),
    step("pool", kind=st.just("mean"), kernel=kernels, stride=st.integers(1, 3), ceil=flags, padding=st.integers(0, 1)),
    step("adaptive", kind=st.just("mean"), out=st.tuples(st.integers(1, 7), st.integers(1, 7))),
    step("misaligned_concat", kernel=kernels, shift=st.integers(0, 2)),
    step("grouped_and_shuffled", kernel=kernels, builtin=flags),
    step("split_branches", kernel=kernels),
    step("folded_groups", kernel=kernels, groups=st.integers(1, 2)),
    step("shortcut"),
    step("nearest", scale=st.sampled_from([0.5, 1.5, 2.0]), size=sizes, mode=st.sampled_from(["nearest", "nearest-exact"])),  # noqa: E501
    step("rearranged", kind=st.sampled_from(REARRANGED)),
)  # fmt: skip
other_steps = (
    step("pool", kind=st.just("max"), kernel=kernels, stride=st.integers(1, 3), ceil=flags, padding=st.integers(0, 1)),
    step("dilated_max_pool", kernel=kernels, dilation=st.integers(1, 3)),
    step("adaptive", kind=st.just("max"), out=st.tuples(st.integers(1, 7), st.integers(1, 7))),
    step("residual", kernel=kernels, in_place=flags),
    step("pointwise", kind=st.sampled_from(POINTWISE)),
    step("norm", kind=st.sampled_from(["batch", "instance", "layer", "layer first", "global response", "local response", "group"])),  # noqa: E501
    step("spatial_attention", kernel=kernels, kind=st.sampled_from(["mean", "sum", "std"])),
    step("channel_mixing", kind=st.sampled_from(["linear", "matmul", "softmax", "einsum"])),
    step("squeezed", kind=st.sampled_from(["excite", "rows", "columns"])),
)  # fmt: skip
interpolations = step(
    "resized",
    mode=st.sampled_from(["bilinear", "bicubic"]),
    scale=st.sampled_from([0.5, 1.5, 2.0, 3.0]),
    size=sizes,
    corners=flags,
)


def graph_of(steps: list[Step]) -> Compute:
    """Computes the steps one after the other, and shows what each gives; steps that the size forbids are left out."""

    def compute(image: Tensor, see: See) -> None:
        value = image
        for number, (name, options) in enumerate(steps):
            value = STEPS[name](value, **options)
            see(f"{number} {name} {options}", value)

    return compute


@st.composite
def graphs(draw: st.DrawFn, steps: tuple[st.SearchStrategy[Step], ...], longest: int) -> tuple[list[Step], Tensor]:
    image = torch.rand(1, CHANNELS, draw(st.integers(3, 16)), draw(st.integers(3, 16)))
    chosen: list[Step] = []
    value = image
    for _ in range(draw(st.integers(1, longest))):
        name, options = draw(st.one_of(steps))
        try:
            made = STEPS[name](value, **options)
        except (RuntimeError, ValueError, AssertionError):  # too small for it
            continue
        if made.numel() and max(made.shape) <= 24:
            chosen, value = [*chosen, (name, options)], made
    return chosen, image


@given(graphs((*linear_steps, *other_steps), longest=5))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_graph_has_exactly_the_boxes_that_nan_reaches(graph: tuple[list[Step], Tensor]) -> None:
    steps, image = graph
    compute = graph_of(steps)
    with torch.no_grad():
        expected = nan_boxes(compute, image)
    assert_same(followed(compute, image), expected)


@given(graphs((*linear_steps, interpolations, interpolations, interpolations), longest=3))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_interpolation_reads_the_pixels_that_have_weight(graph: tuple[list[Step], Tensor]) -> None:
    steps, image = graph
    compute = graph_of(steps)
    image = image.double()
    with torch.no_grad():
        expected = change_boxes(compute, image)
    assert_same(followed(compute, image), expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 5), (7, 19), (10, 8)])
def test_antialiased_interpolation(mode: str, size: tuple[int, int]) -> None:
    def compute(image: Tensor, see: See) -> None:
        see("out", F.interpolate(conv(image, (2, 3)), size, mode=mode, antialias=True))

    image = torch.rand(1, CHANNELS, 18, 18, dtype=torch.float64)
    found = followed(compute, image)["out"]
    with torch.no_grad():
        expected = change_boxes(compute, image)["out"]
    assert_contains(found, expected)
    # A weight at the end of the filter may be zero, or what rounding has left of it.
    assert int((found - expected).abs().max()) <= 1


@pytest.mark.parametrize("kind", POINTWISE)
def test_every_pointwise_operation_keeps_boxes(kind: str) -> None:
    steps: list[Step] = [("misaligned_concat", {"kernel": (3, 2), "shift": 1}), ("pointwise", {"kind": kind})]
    assert_exact(steps)


@pytest.mark.parametrize("kind", REARRANGED)
def test_every_rearrangement_moves_boxes(kind: str) -> None:
    steps: list[Step] = [
        ("misaligned_concat", {"kernel": (3, 2), "shift": 1}),
        ("rearranged", {"kind": kind}),
        ("conv", {"kernel": (2, 3), "groups": 2}),
    ]
    assert_exact(steps)


@pytest.mark.parametrize(("padding", "output_padding", "dilation"), [(0, 1, 2), (1, 0, 1), (1, 1, 1), (2, 0, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 2), (3, 1)])
def test_transposed_convolutions_that_cut_or_add_rows(
    kernel: tuple[int, int], padding: int, output_padding: int, dilation: int
) -> None:
    options = {"stride": 2, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    assert_exact([("transposed", {"kernel": kernel, "groups": 1, **options})])
    if output_padding < dilation:
        assert_exact([("transposed", {"kernel": kernel, "groups": 2, **options, "stride": 1})])


def assert_exact(steps: list[Step]) -> None:
    image = torch.rand(1, CHANNELS, 9, 11)
    with torch.no_grad():
        expected = nan_boxes(graph_of(steps), image)
    assert_same(followed(graph_of(steps), image), expected)


# Writing in place: what shares memory moves along.


def first_rows_overwritten(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, :, 1:] = x[:, :, :-1]
    return made


def view_of_what_is_filled_later(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    view = made[:, :2]
    made.copy_(conv(x, (3, 3), padding=1))
    return view


def view_of_what_is_added_to_later(x: Tensor) -> Tensor:
    x = x.clone()
    view = x[:, 1:, 1:]
    x += F.pad(x[..., :-2], (2, 0))
    return view


def base_of_a_view_that_is_added_to(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :2] += conv(x, (1, 3), padding=(0, 1), out=2)
    return x


def another_view(x: Tensor) -> Tensor:
    x = x.clone()
    whole, some = x.view(x.shape[0], -1), x[:, 1:3]
    some.copy_(x[:, 2:].flip(3))
    return whole.view_as(x)


def activated_half(x: Tensor) -> Tensor:
    x = conv(x, (3, 3))
    half, other = x.chunk(2, 1)
    F.relu(half, inplace=True)
    return torch.cat([conv(other, (2, 2), out=2), x[..., 1:, 1:]], 1)


def erased(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 0
    x[:, 1, 2].zero_()
    return x


def filled_with_a_mean(x: Tensor) -> Tensor:
    return torch.zeros_like(x).fill_(x[0, 0, 1:3, 1:3].mean()) if len(x) == 1 else _filled_one_by_one(x)


def _filled_one_by_one(x: Tensor) -> Tensor:
    return torch.cat([filled_with_a_mean(image[None]) for image in x])


def written_to_out(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    torch.add(x[:, :2], x[:, 2:].flip(2), out=made[:, 1:3])
    return made


def joined_into_memory(x: Tensor) -> Tensor:
    made = x[:, :, :6].flip(3).repeat(1, 2, 1, 1)
    return torch.cat([x[:, :, 1:4], x[:, :, :3]], 2, out=made[:, :4])  # type: ignore[call-overload,no-any-return]


def picked_into_memory(x: Tensor) -> Tensor:
    made = torch.empty(x.shape)
    return torch.index_select(x, 2, torch.arange(x.shape[2]).flip(0), out=made)


def constants_written_to_out(x: Tensor) -> Tensor:
    made = conv(x, (3, 3))
    torch.add(torch.ones(len(x), 2, 2, 2), 1, out=made[:, :2, 1:3, 1:3])
    return made


def moved_in_place(x: Tensor) -> Tensor:
    x = conv(x, (3, 1))
    moved = x.clone().unsqueeze_(2).transpose_(1, 2).squeeze_(1)
    return torch.cat([moved[..., 1:], x[..., :-1]], 1)


def kept_before_a_write(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :1] += 1
    before = x * 1
    x[:, :, 1:] = before[:, :, :-1].clone()
    return torch.cat([before, x], 1)


def detached_and_added_to(x: Tensor) -> Tensor:
    x = x.clone()
    alias, data = x.detach(), x.data
    alias[:, 0] += x[:, 1].flip(1)
    data[:, 2, 1] = 0
    return x


def written_in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return first_rows_overwritten(x) + view_of_what_is_filled_later(x)[:, :1]


def expanded_and_added_to(x: Tensor) -> Tensor:
    x = x[:, :1].clone()
    many = x.expand(-1, 3, -1, -1)
    x += x.flip(3).clone()
    return many


def seen_as_whole_numbers(x: Tensor) -> Tensor:
    x = x.clone()
    numbers = x.view(torch.int32)
    x[:, 0] = x[:, 1].flip(1)
    return numbers.view(torch.float32)


WRITES = [
    *(first_rows_overwritten, view_of_what_is_filled_later, view_of_what_is_added_to_later, another_view),
    *(base_of_a_view_that_is_added_to, activated_half, erased, filled_with_a_mean, written_to_out, moved_in_place),
    *(kept_before_a_write, detached_and_added_to, expanded_and_added_to),
    *(joined_into_memory, picked_into_memory, constants_written_to_out),
]


@pytest.mark.parametrize("function", WRITES)
def test_writes_are_followed_through_views(function: Callable[[Tensor], Tensor]) -> None:
    def compute(image: Tensor, see: See) -> None:
        see("out", function(image))

    image = torch.rand(1, CHANNELS, 7, 9)
    with torch.no_grad():
        expected = nan_boxes(compute, image)
        assert not bool((expected["out"] == torch.tensor([0, 0, 7, 9])).all())
        assert_same(followed(compute, image), expected)


# Operations that see everything, and operations that nobody has told of


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return mixed.transpose(1, 2).reshape(x.shape)


class SqueezeExcite(nn.Module):
    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Linear(CHANNELS, 2), nn.Linear(2, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) if self.functional else self.pool(x).flatten(1)
        gate = self.up(F.relu(self.down(pooled))).sigmoid()
        return x * gate[..., None, None]


def linear_head(x: Tensor) -> Tensor:
    return F.linear(x.flatten(1), torch.ones(CHANNELS, x[0].numel()))[..., None, None]


WHOLE = {
    "attention": lambda: Attention().eval(),
    "squeeze-excite": lambda: SqueezeExcite(functional=False),
    "functional squeeze-excite": lambda: SqueezeExcite(functional=True),
    "torchvision's squeeze-excite": lambda: torchvision.ops.SqueezeExcitation(CHANNELS, 2),
    "global pooling": lambda: nn.AdaptiveMaxPool2d(1),
    "global norm": lambda: nn.GroupNorm(1, CHANNELS),
    "layer norm": lambda: nn.LayerNorm((CHANNELS, 7, 9)),
    "linear layer": lambda: linear_head,
}


@pytest.mark.parametrize("name", WHOLE)
def test_behind_what_sees_everything_every_unit_depends_on_the_whole_image(name: str) -> None:
    module = WHOLE[name]()

    def compute(image: Tensor, see: See) -> None:
        see("out", conv(module(image), (1, 1)))

    image = torch.rand(1, CHANNELS, 7, 9)
    boxes = followed(compute, image)["out"]
    assert bool((boxes == torch.tensor([0, 0, 7, 9])).all())
    with torch.no_grad():
        assert_same({"out": boxes}, nan_boxes(compute, image))


def sampled(x: Tensor) -> Tensor:
    theta = torch.tensor([[0.5, 0.1, 0.2], [0.0, 0.7, -0.1]]).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def own_weights(x: Tensor) -> Tensor:
    """The weights depend on the image, one image at a time."""
    images = [F.conv2d(image[None], image[None, :, :1, :1].expand(CHANNELS, -1, -1, -1)) for image in x]
    return torch.cat(images)


def indexed_write(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.tensor([0, 2])] = x[:, torch.tensor([1, 3])].flip(2)
    return x


def scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter_(2, torch.arange(x.shape[2]).flip(0)[:, None].expand_as(x).contiguous(), x)


def of_lines(x: Tensor) -> Tensor:
    lines, _ = nn.LSTM(x.shape[-1], x.shape[-1], batch_first=True)(x[:, 0])
    return lines[:, None]


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "written in inference mode": written_in_inference_mode, "seen as whole numbers": seen_as_whole_numbers,
    "seen as complex numbers": lambda x: torch.view_as_real(torch.view_as_complex(x.repeat(1, 1, 1, 2).view(*x.shape, 2)) + 1)[..., 0],  # noqa: E501
    "sampled": sampled, "own weights": own_weights, "indexed write": indexed_write, "scattered": scattered,
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "cumsum": lambda x: x.cumsum(2), "cummax": lambda x: x.cummax(3)[0], "sort": lambda x: x.sort(3)[0],
    "topk": lambda x: x.topk(3, dim=3)[0], "fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]),
    "convolution in 1D": lambda x: F.conv1d(x.flatten(2), weights(4, 4, 3, like=x), padding=1).view_as(x),
    "convolution in 3D": lambda x: F.conv3d(x[:, None], weights(1, 1, 3, 3, 3, like=x), padding=1)[:, 0],
    "pooling in 1D": lambda x: F.max_pool1d(x.flatten(2), 3, 1, 1).view_as(x), "lines": of_lines,
    "gather": lambda x: x.gather(2, torch.arange(x.shape[2]).flip(0)[:, None].expand_as(x)),
    "other numbers": lambda x: x.view(torch.int32).view(torch.float32),
    "median": lambda x: x.median(2, keepdim=True)[0],
    "deformed": lambda x: torchvision.ops.deform_conv2d(x, torch.full((len(x), 18, *x.shape[2:]), 0.6), weights(4, 4, 3, 3, like=x), padding=1),  # noqa: E501
    "strided": lambda x: x.contiguous().as_strided(x.shape, x.stride()).flip(2) + 0,
    "vector product": lambda x: (x @ torch.ones(x.shape[3]))[..., None],
    "batched product": lambda x: x @ x.transpose(2, 3),
    "log-sum-exp": lambda x: x.logsumexp(2, keepdim=True), "outer sum": lambda x: x[..., :1] + x[..., :1, :],
    "addmm": lambda x: torch.stack([torch.addmm(a[0, :, :1], a[1], a[2].T) for a in x])[:, None],
    "baddbmm": lambda x: torch.baddbmm(x[:, 0, :, :1], x[:, 1], x[:, 2].transpose(1, 2))[:, None],
    "index add": lambda x: x.clone().index_add_(2, torch.tensor([0, 2]), x[:, :, 3:5]),
    "norm of all": lambda x: x / x.pow(2).sum((1, 2, 3), keepdim=True).sqrt(),
    "several extrema": lambda x: torch.stack(torch.aminmax(x, dim=2, keepdim=True))[0],
    "attention weights": lambda x: F.scaled_dot_product_attention(x, x, x),
    "batch statistics": lambda x: torch.cat([torch.ops.aten._batch_norm_with_update(image[None], None, None, torch.zeros(4), torch.ones(4), 0.1, 1e-5)[0] for image in x]),  # noqa: E501
    "switches": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:]),
    "put": lambda x: x.clone().index_put_((torch.arange(len(x))[:, None], torch.tensor([0, 1])), x[:, 2:]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_box_of_an_unusual_operation_is_never_too_small(name: str) -> None:
    torch.manual_seed(0)

    def compute(image: Tensor, see: See) -> None:
        torch.manual_seed(0)
        x = F.pad(image, (0, 0, 1, -1))  # boxes that are not just the place
        see("out", UNKNOWN[name](torch.cat([x[:, :2], image[:, 2:]], 1)))

    image = torch.rand(1, CHANNELS, 7, 9)
    with torch.no_grad():
        expected = nan_boxes(compute, image)["out"]
        assert bool((expected[..., 2] > 0).any())
        assert_contains(followed(compute, image)["out"], expected)


# The class itself


def test_a_unit_that_depends_on_no_pixel_has_an_empty_box() -> None:
    bounds, image = BoundsMode(), torch.rand(1, 1, 4, 4)
    with torch.no_grad(), bounds.follow(image):
        field = bounds.receptive_field("padded", F.pad(image, (0, 0, 2, 0)))
        nothing = bounds.receptive_field("constant", torch.ones(1, 1, 4, 4))
        fresh = bounds.receptive_field("fresh", conv(torch.zeros_like(image), (1, 1), out=1))
    assert field is not None
    assert field.boxes[0, 0, 0].tolist() == [0, 0, 0, 0]
    assert field.boxes[0, 2, 1].tolist() == [0, 1, 1, 2]
    assert nothing is None
    assert fresh is None


def test_channels_share_their_boxes_where_they_can() -> None:
    bounds, image = BoundsMode(), torch.rand(1, 4, 8, 8)
    with torch.no_grad(), bounds.follow(image):
        same = bounds.receptive_field("same", conv(image, (3, 3)))
        different = bounds.receptive_field("different", misaligned_concat(image, (3, 3), 1))
    assert same is not None
    assert different is not None
    assert (same.boxes.shape, same.boxes.dtype) == ((1, 6, 6, 4), torch.int16)
    assert different.boxes.shape == (4, 8, 8, 4)
    channels, rows, columns = torch.tensor([3, 1, 0]), torch.tensor([2, 2, 2]), torch.tensor([3, 3, 3])
    assert same.box(channels, rows, columns).tolist() == [[2, 3, 5, 6]] * 3
    assert different.box(channels, rows, columns).tolist() == [[2, 3, 3, 4], [3, 2, 4, 3], [1, 2, 4, 5]]
    assert different.size == (3, 3)
    assert same.image_size == (8, 8)


def test_flat_outputs_count_as_one_unit_a_channel() -> None:
    bounds, image = BoundsMode(), torch.rand(1, 2, 5, 6)
    with torch.no_grad(), bounds.follow(image):
        field = bounds.receptive_field("head", image[:, :, 1:3, 2].flatten(1))
    assert field is not None
    assert field.boxes.tolist() == [[[[1, 2, 2, 3]]], [[[2, 2, 3, 3]]]] * 2


def test_the_values_and_the_caller_are_left_alone() -> None:
    model = torchvision.models.resnet18(weights=None).eval()
    image = torch.rand(1, 3, 40, 33)
    kept = image.clone()
    bounds = BoundsMode()
    with torch.no_grad():
        expected = model(image)
        with bounds.follow(image):
            made = model(image)
    assert torch.equal(made, expected)
    assert torch.equal(image, kept)
    assert bounds.receptive_field("late", made) is None


def test_tensors_are_let_go() -> None:
    bounds, image = BoundsMode(), torch.rand(1, 1, 8, 8)
    with torch.no_grad(), bounds.follow(image):
        inner = conv(image, (3, 3), out=1)
        alive = weakref.ref(inner)
        inner = conv(inner, (3, 3), out=1)
        gc.collect()
        assert alive() is None


def test_wrong_input_is_refused() -> None:
    for image in (torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8)):
        with (
            pytest.raises(ValueError, match=r"followed for one image \(1, C, H, W\), signal .* or volume .*, not \("),
            BoundsMode().follow(image),
        ):
            pass
    with pytest.raises(ValueError, match=r"boxes must be \(G, H, W, 4\), not \(3, 4\)"):
        ReceptiveField(layer="layer", image_size=(8, 8), boxes=torch.zeros(3, 4))
