from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import regnet

from lightning_cnnviz.core.layer_table.table import (
    LayerRow,
    LayerTable,
    fit_windows,
    layer_table,
)

META = torch.device("meta")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small operations: threads would wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MODELS = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith(("vit_", "swin_", "maxvit"))
]


def network(name: str) -> nn.Module:
    """A torchvision network without values."""
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    plan = regnet.BlockParams.from_init_params

    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):  # reckons with tensors
            return plan(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, META:
        patch.setattr(regnet.BlockParams, "from_init_params", on_cpu)
        made: nn.Module = torchvision.models.get_model(name, **options)
    return made.eval()


def row_of(table: LayerTable, layer: str) -> LayerRow:
    (row,) = [row for row in table.rows if row.layer == layer and row.kind != "norm"]
    return row


def test_there_are_networks_to_check() -> None:
    assert len(MODELS) >= 65


# Larger members of families of which a small one runs by default.
_LARGE = (
    r"efficientnet_(b[1-7]|v2_[ml])|densenet(1[68]|2)|resnet(50|101|152)|wide|resnext|convnext_[sbl]"
    r"|regnet_._(8|16|32|[138]_)|vgg1[369]"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bool(re.match(_LARGE, name))) for name in MODELS]
)
def test_every_convnet_of_torchvision(name: str) -> None:
    model, size = network(name), {"alexnet": 63, "inception_v3": 75}.get(name, 33)
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = []
    kinds = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d)
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, path=path: seen.append(
                (path, tuple(inputs[0].shape[1:]), tuple(output.shape[1:]), sum(p.numel() for p in module.parameters()))
            )
        )
        for path, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        model(torch.empty(1, 3, size, size, device=META))
    for handle in handles:
        handle.remove()
    table = layer_table(model, (3, size, size))
    modules = dict(model.named_modules())
    found = [row for row in table.rows if isinstance(modules[row.layer], kinds)]
    assert [(row.layer, row.input_shape, row.output_shape, row.parameters) for row in found] == seen
    assert len(seen) > 10
    # Every parameter is counted once; GoogLeNet's and Inception's auxiliary heads do not run in eval mode.
    total = sum(parameter.numel() for parameter in model.parameters())
    assert table.parameters == total == sum(row.parameters for row in table.rows) + sum(n for _, n in table.unused)
    assert bool(table.unused) == (name in ("googlenet", "inception_v3"))
    for row in found:
        module = modules[row.layer]
        if isinstance(module, nn.Conv2d):
            weights = module.weight[0].numel()
            assert row.macs == weights * math.prod(row.output_shape)
            assert row.parameter_formula.endswith(f"times {module.out_channels:,} = {row.parameters:,}")
            assert (row.kernel, row.stride, row.padding) == (module.kernel_size, module.stride, module.padding)
        if row.fit and row.kind != "norm":
            assert tuple(axis.output for axis in row.fit) == row.output_shape[1:]


def test_shapes_are_those_of_a_pass_that_computes() -> None:
    model = torchvision.models.squeezenet1_0().eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, path=path: shapes.__setitem__(path, tuple(out.shape[1:])))
    with torch.no_grad():
        model(torch.rand(1, 3, 50, 61))
    shapes_computed = dict(shapes)
    table = layer_table(model, (3, 50, 61))
    assert all(row.output_shape == shapes_computed[row.layer] for row in table.layers if row.layer)
    assert row_of(table, "features.12").type == "concatenation"


@pytest.mark.parametrize(
    ("name", "layer", "size", "jump"),
    [
        ("resnet18", "layer4", 435, 32),
        ("resnet50", "layer4", 427, 32),
        ("alexnet", "features.10", 163, 16),
        ("alexnet", "features.12", 195, 32),
        ("vgg16", "features.28", 196, 16),
        ("vgg16", "features.30", 212, 32),
        ("squeezenet1_1", "features.12", 207, 16),
        ("mobilenet_v2", "features.18.0", 491, 32),
    ],
)
@pytest.mark.parametrize("image", [(64, 64), (224, 224), (97, 130)])
def test_published_fields_whatever_the_image(
    name: str, layer: str, size: int, jump: int, image: tuple[int, int]
) -> None:
    table = layer_table(network(name), (3, *image))
    rows = [row for row in table.layers if row.layer == layer or row.layer.startswith(f"{layer}.")]
    assert rows[-1].receptive_field == (size, size)
    assert rows[-1].jump == (jump, jump)
    assert not rows[-1].clipped


NAN_ROWS = (301, 302, 303, 317)
BRANCHED = ["densenet121", "googlenet", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0"]


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=[pytest.mark.slow] * (name in ("densenet121", "googlenet"))) for name in BRANCHED),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        "mnasnet0_5",
        "mobilenet_v3_small",
        "regnet_y_400mf",
    ],
)
def test_fields_are_what_nan_reaches(name: str) -> None:
    """NaN in a row of the image reaches, of every map, the rows whose fields hold it, as the table has them."""
    height, width = 640, 96
    model = filled(name)
    table = layer_table(model, (3, height, width))
    image = torch.zeros(len(NAN_ROWS), 3, height, width)
    for place, spoilt in enumerate(NAN_ROWS):
        image[place, :, spoilt] = torch.nan
    reached: dict[str, list[Tensor]] = {}
    layers = {row.layer: row for row in table.layers if row.layer and row.kind in ("conv", "pool")}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _i, out, layer=layer: reached.setdefault(layer, []).append(out.isnan().any(1).any(-1))
        )
    with torch.no_grad():
        model(image)
    compared = 0
    for row in table.layers:
        if row.layer not in layers or row.type.startswith("functional") or row.kind not in ("conv", "pool"):
            continue
        rows = reached[row.layer][row.use - 1]
        assert row.receptive_field is not None
        assert row.jump is not None or row.output_shape[1:] == (1, 1)
        size = row.receptive_field[0]
        for place, spoilt in enumerate(NAN_ROWS):
            expected = torch.ones(len(rows[place]), dtype=torch.bool)
            if size is not None:
                assert row.jump is not None
                assert row.first_center is not None
                centers = row.first_center[0] + row.jump[0] * torch.arange(len(expected), dtype=torch.float64)
                expected = (centers - spoilt).abs() <= (size - 1) / 2
            assert torch.equal(rows[place], expected), (row.name, size)
        compared += 1
    assert compared > 20


def filled(name: str) -> nn.Module:
    """A torchvision network with weights that hide nothing."""
    model = network(name).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(1e-3)
    return model


@pytest.mark.parametrize(
    ("name", "layer", "size", "height"),
    [
        ("resnet18", "layer4.1.conv2", 435, 480),
        ("alexnet", "features.10", 163, 227),
        ("vgg16", "features.28", 196, 240),
    ],
)
def test_fields_are_the_support_of_the_gradient(name: str, layer: str, size: int, height: int) -> None:
    model = filled(name).double()
    for parent in [*model.modules()]:
        for key, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d):  # hands its gradient to one pixel of a window only
                setattr(parent, key, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
            elif isinstance(module, nn.Conv2d):
                nn.init.constant_(module.weight, 4 / module.weight[0].numel())
            elif isinstance(module, nn.BatchNorm2d):
                parent.register_module(key, nn.Identity())
    maps: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: maps.append(out))
    image = torch.ones(1, 3, height, 64, dtype=torch.float64, requires_grad=True)
    model(image)
    middle = maps[0].shape[2] // 2
    (gradient,) = torch.autograd.grad(maps[0][0, 0, middle, 0], image)
    rows = gradient.abs().amax((0, 1, 3)).nonzero().flatten()
    row = row_of(layer_table(network(name), (3, height, 64)), layer)
    assert len(rows) == size == int(rows[-1] - rows[0]) + 1
    assert row.receptive_field == (size, size)
    assert row.first_center is not None
    assert row.jump is not None
    assert float(rows[0] + rows[-1]) / 2 == row.first_center[0] + middle * row.jump[0]


def test_the_whole_image_is_told_though_a_row_is_dropped() -> None:
    last = layer_table(network("squeezenet1_0"), (3, 224, 224)).rows[-1]
    assert (last.layer, last.receptive_field, last.clipped) == ("classifier.3", (None, None), False)


def test_dense_blocks_through_concatenation() -> None:
    # Each layer adds two units of 4, 8, 16, 32 pixels to what the block begins with (11, 67, 271, 1071 less).
    table = layer_table(network("densenet121"), (3, 64, 64))
    ends = [row_of(table, f"features.denseblock{block}.denselayer1.conv2").receptive_field for block in (1, 2, 3, 4)]
    assert ends[0] == (19, 19)
    last = [row_of(table, f"features.denseblock{block}.denselayer{n}.conv2") for block, n in ((1, 6), (2, 12))]
    assert last[0].receptive_field == (11 + 6 * 8,) * 2
    start = 11 + 6 * 8 + 4  # behind the transition's pooling of 2 at jump 4
    assert last[1].receptive_field == (start + 12 * 16,) * 2


class Blocks(nn.Module):
    """A module that is used twice, functions, a transposed convolution that overlaps, and branches."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 4, 5, stride=2, bias=False)
        self.again = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        y = F.relu_(F.max_pool2d(self.again(self.again(x)), 2, ceil_mode=True))
        y = F.interpolate(F.avg_pool2d(y, 3, 1, 1), x.shape[-2:])
        x = torch.cat([x, x + y], 1)[:, :4]
        logits: Tensor = self.head((self.up(x) * self.scale).mean((2, 3)))
        return logits


def test_reused_modules_functions_and_branches() -> None:
    model = Blocks()
    table = layer_table(model, (3, 65, 49))
    found = [(row.name, row.type, row.output_shape) for row in table.layers]
    assert found == [
        ("entry", "Conv2d", (4, 31, 23)),
        ("again", "Conv2d", (4, 31, 23)),
        ("again #2", "Conv2d", (4, 31, 23)),
        ("(network)", "functional max_pool2d", (4, 16, 12)),
        ("(network)", "functional avg_pool2d", (4, 16, 12)),
        ("(network)", "functional upsample_nearest2d", (4, 31, 23)),
        ("(network)", "sum", (4, 31, 23)),
        ("(network)", "concatenation", (8, 31, 23)),
        ("up", "ConvTranspose2d", (6, 62, 46)),
        ("(network)", "functional mean", (6,)),
        ("head", "Linear", (5,)),
    ]
    entry, again, second, pool, *_ = table.layers
    assert entry.formula == "rows: (65 - 5)/2 + 1 = 31; columns: (49 - 5)/2 + 1 = 23"
    assert entry.parameter_formula == "each filter 5·5·3 = 75, times 4 = 300"
    assert again.parameter_formula == "each filter 3·3·2 + 1 = 19, times 4 = 76"
    assert again.formula.startswith("rows: (31 + 2·2 - (2·2 + 1))/1 + 1 = 31;")
    assert (second.parameters, second.shared, second.macs) == (0, True, again.macs)
    assert [axis.overhang for axis in pool.fit] == [1, 1]
    up = row_of(table, "up")
    assert up.formula == "rows: (31 - 1)·2 - 2·1 + 4 = 62; columns: (23 - 1)·2 - 2·1 + 4 = 46"
    assert (up.jump, up.macs) == ((1, 1), 4 * 31 * 23 * 6 * 16)
    assert table.rows[-1].receptive_field == (None, None)
    assert table.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(row.parameters for row in table.rows) == table.parameters
    assert table.macs == sum(row.macs for row in table.rows) > 0
    assert table.activation_bytes == sum(4 * math.prod(row.output_shape) for row in table.layers)


def test_no_padding_is_advised_that_pooling_refuses() -> None:
    (row,) = layer_table(nn.MaxPool2d(2, stride=3), (1, 6, 6)).rows
    assert [axis.fitting_padding for axis in row.fit] == [1, 1]
    (row,) = layer_table(nn.MaxPool2d(3, stride=5), (1, 4, 4)).rows
    assert fit_windows(4, 3, 5).fitting_padding == 2
    assert row.fit[0].fitting_padding is None


def test_transposed_convolutions_have_the_field_of_their_largest_unit() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.ConvTranspose2d(1, 1, 3, stride=2))
    row = layer_table(model, (1, 33, 33)).rows[-1]
    assert (row.receptive_field, row.jump, row.first_center) == ((5, 5), (1, 1), (0, 0))


@pytest.mark.parametrize("blow", ["pool", "gate", "attention"])
def test_what_sees_everything_says_whole_image(blow: str) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if blow == "pool":
                x = x + x.mean((2, 3), keepdim=True)
            elif blow == "gate":
                x = x * F.adaptive_avg_pool2d(x, 1).sigmoid()
            else:
                tokens = x.flatten(2)
                x = (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).view_as(x)
            return self.last(x)  # type: ignore[no-any-return]

    table = layer_table(Wide(), (3, 40, 40))
    assert row_of(table, "first").receptive_field == (3, 3)
    last = row_of(table, "last")
    assert (last.receptive_field, last.jump, last.first_center) == ((None, None), (2, 2), None)


class Fixed(nn.Module):
    """Takes one size of image only: a flattened map, as LeNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2))
        self.classifier = nn.Linear(16 * 5 * 5, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def test_networks_that_take_one_size_only() -> None:
    table = layer_table(Fixed(), (1, 32, 32))
    assert [row.receptive_field for row in table.rows] == [(5, 5), (6, 6), (14, 14), (16, 16), (None, None)]
    assert not any(row.clipped for row in table.rows)

    class Strict(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 32 or x.shape[-2] != 32:
                raise ValueError("32 x 32 only")
            return super().forward(x)

    strict = layer_table(Strict(), (1, 32, 32))
    assert [row.receptive_field for row in strict.rows] == [(5, 5), (6, 6), (14, 14), (16, 16), (None, None)]


def test_a_network_whose_course_depends_on_values() -> None:
    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bright, self.dark = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.bright(x) if float(x.mean()) > 0.5 else self.dark(x)
            return out

    zeros = layer_table(Chooser(), (3, 20, 20))
    assert [row.layer for row in zeros.rows] == ["dark"]
    assert zeros.rows[0].receptive_field == (5, 5)
    assert [name for name, _ in zeros.unused] == ["bright.weight", "bright.bias"]
    assert [row.layer for row in layer_table(Chooser(), torch.ones(3, 20, 20)).rows] == ["bright"]


def test_constants_that_a_network_makes_are_no_obstacle() -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.offsets = nn.Conv2d(5, 2, 3), torch.zeros(1, 1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.arange(x.shape[-2]).float().view(1, 1, -1, 1).expand(1, 1, *x.shape[-2:])
            out: Tensor = self.conv(torch.cat([x, rows, rows + self.offsets], 1))
            return out

    (row,) = layer_table(Grid(), (3, 12, 12)).rows
    assert (row.kind, row.receptive_field) == ("conv", (3, 3))


def test_it_leaves_no_trace() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.cache = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), {"kept": 1}

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            self.last = x
            self.cache[str(x.shape)] = 2
            return x

    model = Caching().train()
    model.conv.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    layer_table(model, (3, 16, 16))
    with pytest.raises(ValueError, match="does not take an image of 4x16x16"):
        layer_table(model, (4, 16, 16))
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == [True, False, True]
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "last")
    assert model.cache == {"kept": 1}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def jit_network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.Hardswish(), nn.ConvTranspose2d(8, 4, 2, stride=2)),
        *(nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)),
    ).eval()


# On 3 x 12 x 12: 3·9 for each of 8·12·12, 4·9 for each of 8·4·4, 4·4 for each of 8·4·4, 16 for each of 2.
JIT_MACS = 27 * 8 * 144 + 36 * 8 * 16 + 16 * 8 * 16 + 16 * 2


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("made", ["traced", "scripted"])
def test_what_torch_jit_has_made_of_a_network_has_the_same_rows(made: str, within: bool) -> None:
    network = jit_network()
    whole = torch.jit.trace(network, torch.rand(1, 3, 12, 12)) if made == "traced" else torch.jit.script(network)
    table = layer_table(nn.Sequential(whole) if within else whole, (3, 12, 12))
    expected = layer_table(network, (3, 12, 12))
    assert table.macs == expected.macs == JIT_MACS
    assert (table.parameters, table.unused) == (expected.parameters, ())
    same = ("kind", "output_shape", "formula", "parameters", "macs", "jump", "receptive_field", "first_center")
    for row, its in zip(table.rows, expected.rows, strict=True):
        assert {name: getattr(row, name) for name in same} == {name: getattr(its, name) for name in same}
        assert not its.parameters or row.layer == ("0." if within else "") + its.layer


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("within", [False, True])
def test_a_frozen_network_is_refused(within: bool) -> None:
    frozen = torch.jit.freeze(torch.jit.trace(jit_network(), torch.rand(1, 3, 12, 12)))
    with pytest.raises(ValueError, match=r"('0' of Sequential|the network) is frozen by torch\.jit"):
        layer_table(nn.Sequential(frozen) if within else frozen, (3, 12, 12))


class Switching(nn.Module):
    """It goes into inference mode by itself, as frozen backbones do: there, torch dispatches `conv2d` and such."""

    def __init__(self) -> None:
        super().__init__()
        self.body = jit_network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.body(x)  # type: ignore[no-any-return]


def test_a_network_that_goes_into_inference_mode_by_itself() -> None:
    table = layer_table(Switching(), (3, 12, 12))
    assert table.macs == JIT_MACS
    assert [row.receptive_field for row in table.rows] == [
        row.receptive_field for row in layer_table(jit_network(), (3, 12, 12)).rows
    ]


def test_attention_counts_where_values_are_computed_as_on_shapes_alone() -> None:
    class Attention(nn.Module):
        def __init__(self, chooses: bool) -> None:
            super().__init__()
            self.chooses = chooses

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2)  # in this layout attention has a kernel of its own on CPUs, on shapes it has none
            return F.scaled_dot_product_attention(tokens, tokens, tokens + int(self.chooses and x.sum() > 0))

    assert (
        layer_table(Attention(False), (3, 4, 5)).macs == layer_table(Attention(True), (3, 4, 5)).macs == 2 * 3 * 3 * 20
    )


@pytest.mark.parametrize("chooses", [False, True])
def test_in_inference_mode_as_in_any_other(chooses: bool) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if chooses and float(x.mean()) > 1:  # cannot run without values
                return x
            return self.conv(x.sub_(0.5)).relu_()  # type: ignore[no-any-return]

    model, image = InPlace(), torch.rand(3, 8, 8)
    before = image.clone()
    with torch.inference_mode():
        (row,) = layer_table(model, image).rows
    assert (row.layer, row.output_shape, row.receptive_field) == ("conv", (4, 6, 6), (3, 3))
    assert torch.equal(image, before)


def test_reparametrized_weights_and_no_convolution() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(64, 2))
    table = layer_table(model, (3, 6, 6))
    assert sum(row.parameters for row in table.rows) == table.parameters == 4 + 4 * 27 + 4 + 130
    assert not table.unused
    plain = layer_table(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    assert [row.kind for row in plain.rows] == ["linear"]
    assert plain.rows[0].receptive_field == (None, None)


def test_compiled_networks_keep_their_names() -> None:
    model = torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3)))
    table = layer_table(model, (3, 8, 8))  # type: ignore[arg-type]
    assert (table.model, [row.layer for row in table.rows]) == ("Sequential", ["0"])


@pytest.mark.parametrize(
    ("model", "size", "error", "message"),
    [
        (nn.Conv2d(3, 4, 3), (3, 0, 5), ValueError, r"input_size=\(3, 0, 5\) is no image"),
        (nn.Conv2d(3, 4, 3), (224, 224), ValueError, "give channels, height and width"),
        (nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8), ValueError, r"not \(2, 3, 8, 8\)"),
        (nn.Conv2d(3, 4, 7), (3, 5, 5), ValueError, "Conv2d does not take an image of 3x5x5: .* Kernel size"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 9)),
            (3, 12, 12),
            ValueError,
            "layer '2' stopped, after '1' gave 4x5x5, with: .*[Kk]ernel size",
        ),
        (Fixed(), (1, 28, 28), ValueError, "Fixed does not take an image of 1x28x28: layer 'classifier' stopped"),
        (nn.LazyConv2d(4, 3), (3, 8, 8), ValueError, "has no shape yet: run the network once before"),
        (lambda x: x, (3, 8, 8), TypeError, "layer_table needs an nn.Module, not function"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_wrong_input_is_refused(model: Any, size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer_table(model, size)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "squeezenet1_1"])
def test_it_agrees_with_torchinfo_on_plain_networks(name: str) -> None:
    torchinfo = pytest.importorskip("torchinfo")
    model = torchvision.models.get_model(name, num_classes=10)
    theirs = torchinfo.summary(model, input_size=(1, 3, 64, 64), verbose=0)
    ours = layer_table(model, (3, 64, 64))
    leaves = [layer for layer in theirs.summary_list if layer.is_leaf_layer and layer.num_params > 0]
    rows = [row for row in ours.rows if row.parameters]
    assert [(tuple(leaf.output_size[1:]), leaf.num_params) for leaf in leaves] == [
        (row.output_shape, row.parameters) for row in rows
    ]
    # They count a bias as one multiplication more; and a norm as its parameters.
    for leaf, row in zip(leaves, rows, strict=True):
        if row.kind in ("conv", "linear"):
            assert leaf.macs == row.macs + math.prod(row.output_shape)
    assert theirs.total_params == ours.parameters


def test_a_layer_that_is_fed_by_constants_has_a_row() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bias = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
            self.register_buffer("places", torch.rand(5, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x) + self.bias(self.places).mean(0)[:, None, None]
            return out

    table = layer_table(Positions(), (3, 8, 8))
    first, second = row_of(table, "bias.0"), row_of(table, "bias.2")
    assert (first.macs, second.macs, first.parameters, second.parameters) == (5 * 16, 5 * 32, 24, 36)
    assert (first.receptive_field, first.type) == (None, "Linear")
    assert table.macs == 27 * 4 * 36 + 5 * 48
    assert sum(row.parameters for row in table.rows) == table.parameters
    assert row_of(table, "conv").receptive_field == (3, 3)


def test_a_weight_that_is_reckoned_from_others_has_no_row() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))).eval()
    assert [(row.kind, row.macs) for row in layer_table(model, (3, 8, 8)).rows] == [("conv", 27 * 4 * 36)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_quantized_network_is_refused(kind: str) -> None:
    if kind == "dynamic":
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
        model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    else:
        model = nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"is quantized: its weights are packed.*Give the network in floating point"):
        layer_table(model, (3, 8, 8))


def test_a_detection_network_has_its_rows() -> None:
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64
    ).eval()
    table = layer_table(model, (3, 64, 64))
    assert len(table.rows) > 150
    assert sum(row.parameters for row in table.rows) + sum(n for _, n in table.unused) == table.parameters


class Recurrent(nn.Module):
    """A recurrent layer along the columns of maps; it begins with a state of zeros, which no image is in."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.recurrent, self.head = nn.Conv2d(1, 4, 3), kind(4, 6), nn.Linear(6, 2)
        self.is_cell = isinstance(self.recurrent, nn.RNNCellBase)

    def forward(self, images: Tensor) -> Tensor:
        steps = self.conv(images).mean(2).permute(2, 0, 1)
        if not self.is_cell:
            return self.head(self.recurrent(steps)[0][-1])
        state = None
        for step in steps:
            state = self.recurrent(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(
    ("kind", "gates"),
    [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4), (nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)],
)
def test_recurrent_layers_count_their_first_state(kind: type[nn.Module], gates: int) -> None:
    network = Recurrent(kind)
    table = layer_table(network, (1, 6, 6))
    conv, head, steps = 4 * 9 * 16, 6 * 2, 4
    assert sum(row.macs for row in table.rows) == conv + steps * gates * 6 * (4 + 6) + head
    assert sum(row.parameters for row in table.rows) == sum(each.numel() for each in network.parameters())
