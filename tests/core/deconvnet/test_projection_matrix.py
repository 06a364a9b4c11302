"""The projections against the explicit reference: fourteen styles of writing a net, networks of torchvision, any stack.

The reference itself is held to captum, where captum is right, and for `method="gradient"` to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import NeuronDeconvolution, NeuronGuidedBackprop
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.deconvnet import METHODS, Recording, explicit_projection
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project

Rectify = Callable[[Tensor], Tensor]
Place = tuple[int, int, int]  # channel, row, column

pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, |)backward hooks")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other's share of such small tensors take thirty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})


class Plain(nn.Module):
    """A stack whose rectifiers are whatever is given: modules or functions."""

    def __init__(self, first: Rectify, second: Rectify) -> None:
        super().__init__()
        self.conv1, self.norm, self.pool = conv(3, 6), nn.BatchNorm2d(6), nn.MaxPool2d(2)
        self.conv2, self.last = conv(6, 5), conv(5, 4)
        self.rectify1, self.rectify2 = first, second

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.rectify1(self.norm(self.conv1(x))))
        return self.last(self.rectify2(self.conv2(x)))


class Pooled(nn.Module):
    """First windows that overlap, then windows that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.overlapping = conv(3, 6), nn.ReLU(), nn.MaxPool2d(3, 2)
        self.conv2, self.relu2, self.plain = conv(6, 5), nn.ReLU(), nn.MaxPool2d(2, 2)
        self.last = conv(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.overlapping(self.relu1(self.conv1(x)))
        return self.last(self.plain(self.relu2(self.conv2(x))))


class Parallel(nn.Module):
    """One ReLU module in two branches that are computed side by side.

    Side by side matters for captum, which keeps one gradient a module: branch after branch, or with equal gradients, it
    is right by chance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.right = conv(3, 5), conv(5, 6), conv(5, 6)
        self.relu, self.last = nn.ReLU(), conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        left, right = self.conv2(x), self.right(x)
        return self.last(torch.cat([self.relu(left), self.relu(right)], dim=1))


class PostActivation(nn.Module):
    """A residual block that is rectified after the sum, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool = conv(3, 5), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.conv2, self.norm2, self.relu2 = conv(5, 6), nn.BatchNorm2d(6), nn.ReLU()
        self.conv3, self.norm3, self.relu3 = conv(6, 5), nn.BatchNorm2d(5), nn.ReLU()
        self.last = conv(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        y = self.norm3(self.conv3(self.relu2(self.norm2(self.conv2(x)))))
        y += x
        return self.last(self.relu3(y))


class PreActivation(nn.Module):
    """A residual block that begins with an in-place ReLU, so that the sum meets the rectified value too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm, self.conv3 = conv(3, 5), conv(5, 6), nn.BatchNorm2d(6), conv(6, 5)
        self.relu1, self.relu2, self.relu3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.last = conv(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv3(self.relu2(self.norm(self.conv2(self.relu1(x))))) + x
        return self.last(self.relu3(x))


class Concatenated(nn.Module):
    """What goes into a ReLU is needed beside what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.relu1 = conv(3, 5), nn.MaxPool2d(2), nn.ReLU()
        self.conv2, self.relu2, self.last = conv(10, 5), nn.ReLU(), conv(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = self.conv2(torch.cat([x, self.relu1(x)], dim=1))
        return self.last(torch.cat([self.relu2(x), x], dim=1))


def shared_relu() -> nn.Module:
    relu = nn.ReLU()
    return Plain(relu, relu)


STYLES: dict[str, Callable[[], nn.Module]] = {
    "module ReLU": lambda: Plain(nn.ReLU(), nn.ReLU()),
    "functional ReLU": lambda: Plain(F.relu, F.relu),
    "method ReLU": lambda: Plain(lambda x: x.relu(), lambda x: x.relu()),
    "in-place ReLU": lambda: Plain(nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
    "one module in sequence": shared_relu,
    "one module in parallel branches": Parallel,
    "post-activation residual": PostActivation,
    "pre-activation residual": PreActivation,
    "concatenation of a ReLU's input": Concatenated,
    "clamp": lambda: Plain(lambda x: x.clamp(min=0), lambda x: x.clamp(min=0)),
    "ReLU6": lambda: Plain(nn.ReLU6(), nn.ReLU6()),
    "SiLU": lambda: Plain(nn.SiLU(), nn.SiLU()),
    "GELU": lambda: Plain(nn.GELU(), nn.GELU()),
    "overlapping and plain pooling": Pooled,
}

# Which of them captum's NeuronDeconvolution, times the activation, gets right. The documentation shows this table.
CAPTUM_IS_RIGHT: dict[str, bool] = {
    "module ReLU": True,
    "functional ReLU": False,
    "method ReLU": False,
    "in-place ReLU": True,
    "one module in sequence": True,
    "one module in parallel branches": False,
    "post-activation residual": True,
    "pre-activation residual": False,
    "concatenation of a ReLU's input": False,
    "clamp": False,
    "ReLU6": False,
    "SiLU": False,
    "GELU": False,
    "overlapping and plain pooling": True,
}

POOLS: dict[str, Callable[[], nn.Module]] = {
    "average": lambda: nn.AvgPool2d(2),
    "average, not square": lambda: nn.AvgPool2d((3, 2), (2, 3)),
    "average, padded": lambda: nn.AvgPool2d(3, 2, 1),
    "average, padding not counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, rounded up": lambda: nn.AvgPool2d(4, 3, 1, ceil_mode=True),
    "average, rounded up, padding not counted": lambda: nn.AvgPool2d(4, 3, 1, ceil_mode=True, count_include_pad=False),
    "average with a divisor": lambda: nn.AvgPool2d(3, 2, divisor_override=5),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d((5, 4)),
    "adaptive average that enlarges": lambda: nn.AdaptiveAvgPool2d((19, 20)),
    "maximum, not square": lambda: nn.MaxPool2d((3, 2), (2, 3)),
    "maximum, padded": lambda: nn.MaxPool2d(3, 2, 1),
    "maximum, dilated": lambda: nn.MaxPool2d(3, 2, 1, dilation=2),
    "maximum, rounded up": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "maximum at every place": lambda: nn.MaxPool2d(3, 1, 1),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d((5, 4)),
}

# Activations that none of the fourteen has, and other spellings.
OTHERS: dict[str, Rectify] = {
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "relu_": lambda x: x.relu_(),
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "clamp_": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "torch.clamp to a range": lambda x: torch.clamp(x, 0, 0.5),
    "Hardtanh from zero": nn.Hardtanh(0.0, 1.0),
    "F.relu6": F.relu6,
    "LeakyReLU": nn.LeakyReLU(0.2),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "LeakyReLU in place": nn.LeakyReLU(0.1, inplace=True),
    "PReLU": nn.PReLU(),
    "ELU": nn.ELU(0.7),
    "F.elu": F.elu,
    "SELU": nn.SELU(),
    "CELU": nn.CELU(1.5),
    "F.gelu": F.gelu,
    "GELU by tanh": nn.GELU("tanh"),
    "F.silu": F.silu,
    "SiLU in place": nn.SiLU(inplace=True),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "F.hardswish": F.hardswish,
    "Softplus": nn.Softplus(),
}
# These are no rectifiers, and pass their ordinary gradient.
SMOOTH: dict[str, Rectify] = {
    "Sigmoid": nn.Sigmoid(),
    "tanh": torch.tanh,
    "Hardsigmoid": nn.Hardsigmoid(),
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
}

# Name: size of the image; an early, a middle and a deep layer: convolutions, activations and whole blocks.
NETWORKS: dict[str, tuple[tuple[int, int], tuple[str, str, str]]] = {
    "alexnet": ((75, 64), ("features.0", "features.6", "features.10")),
    "vgg11": ((47, 38), ("features.3", "features.8", "features.18")),
    "vgg11_bn": ((38, 47), ("features.0", "features.11", "features.22")),
    "resnet18": ((75, 64), ("conv1", "layer2.0.conv2", "layer4")),
    "densenet121": (
        (65, 47),
        ("features.conv0", "features.denseblock2.denselayer3.conv2", "features.denseblock4.denselayer16.conv1"),
    ),
    "squeezenet1_0": ((75, 64), ("features.0", "features.7", "features.12")),
    "squeezenet1_1": ((75, 64), ("features.3.squeeze", "features.9", "features.12.expand3x3")),
    "googlenet": ((75, 64), ("conv2.conv", "inception4a", "inception5b.branch3.1.conv")),
    "inception_v3": ((75, 81), ("Conv2d_2b_3x3.conv", "Mixed_5c", "Mixed_7c.branch3x3_2a.conv")),
    "shufflenet_v2_x0_5": ((75, 64), ("conv1.0", "stage3.1.branch2.3", "conv5.0")),
    "mobilenet_v2": ((75, 64), ("features.1.conv.1", "features.7", "features.18.0")),
    "mobilenet_v3_small": ((75, 64), ("features.0.0", "features.5.block.1.0", "features.12.0")),
    "efficientnet_b0": ((75, 64), ("features.1.0.block.0.0", "features.4.0.block.1.0", "features.7.0.block.3.0")),
    "mnasnet0_5": ((75, 64), ("layers.3", "layers.9.1.layers.3", "layers.14")),
    "regnet_y_400mf": (
        (75, 64),
        ("stem.0", "trunk_output.block2.block2-1.f.b.0", "trunk_output.block4.block4-1.f.c.0"),
    ),
    "convnext_tiny": ((75, 64), ("features.0.0", "features.3.1.block.0", "features.7.0.block.0")),
}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations in range, and batch normalization that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.uniform_(-1, 1, generator=generator).mul_((6 / parameter[0].numel()) ** 0.5)
            else:
                parameter.uniform_(-0.2, 0.2, generator=generator)
                # Scales of both signs: a negative one turns the signal round.
                parameter.add_(parameter.sign() * 0.8 + 0.2 if name.endswith("weight") else 0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.3, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def torchvision_network(name: str) -> nn.Module:
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if name == "inception_v3":
        options["transform_input"] = False
    # Drawing the initial weights takes longer than all that is tested: none are drawn. RegNet computes its widths so.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = torchvision.models.get_model(name, weights=None, **options)
        if name.startswith(("alexnet", "vgg")):
            network.classifier = nn.Identity()
    return randomized(network.to_empty(device="cpu"))


def random_images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def places_in(activations: Tensor) -> list[Place]:
    """Two corners, an edge and the middle, in different channels."""
    channels, rows, columns = activations.shape
    return [
        (0, 0, 0),
        (channels // 3, rows // 2, columns // 2),
        (channels // 2, 0, columns // 2),
        (channels - 1, rows - 1, columns - 1),
    ]


def strongest_in(activations: Tensor) -> list[Place]:
    """The strongest unit of some channels, which no rectifier holds at zero."""
    channels, _, columns = activations.shape
    found = [(channel, int(activations[channel].argmax())) for channel in (0, channels // 2)]
    return [(channel, place // columns, place % columns) for channel, place in found]


def difference(result: Tensor, expected: Tensor) -> float:
    """The greatest difference, as a share of the greatest expected value."""
    assert result.shape == expected.shape
    greatest = float((result.double() - expected).abs().max())
    return 0.0 if greatest == 0 else greatest / max(float(expected.abs().max()), 1e-300)


def check(
    model: nn.Module, images: Tensor, layer: str, places: Sequence[Place], method: str, limit: float, **options: Any
) -> None:
    """Compare a projection of the places in all images with the reference's."""
    recordings = [Recording(model, image[None], layer) for image in images]
    check_against(recordings, model, images, layer, places, method, limit, **options)


def check_against(
    recordings: Sequence[Recording],
    model: nn.Module,
    images: Tensor,
    layer: str,
    places: Sequence[Place],
    method: str,
    limit: float,
    **options: Any,
) -> None:
    units = [Unit(image, layer, *place) for image in range(len(images)) for place in places]
    projection = project(model, images, units, method=method, **options)
    assert [unit[:5] for unit in projection.units] == [unit[:5] for unit in units]
    wrong = {}
    for i, unit in enumerate(projection.units):
        recording = recordings[unit.image]
        expected = recording.projection(unit.channel, unit.row, unit.column, method)
        activation = float(recording.activations[unit.channel, unit.row, unit.column])
        assert unit.activation is not None
        assert abs(unit.activation - activation) <= limit * float(recording.activations.abs().max())
        if activation != 0:
            # The activation was compared above: near zero it is known to fewer digits than what it multiplies.
            expected = expected * (unit.activation / activation)
        top, left, bottom, right = projection.boxes[i].tolist()
        assert projection.pixels[i].shape == (images.shape[1], bottom - top, right - left)
        if (found := difference(projection.on_image(i), expected)) > limit:
            wrong[unit] = found
    assert wrong == {}


def captum_projection(
    model: nn.Module, image: Tensor, layer: str, place: Place, kind: type = NeuronDeconvolution
) -> Tensor:
    seen: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone()))
    model(image)
    handle.remove()
    return kind(model, module).attribute(image.clone().requires_grad_(), place)[0].detach() * seen[0][0][place]


def gradient_by_autograd(model: nn.Module, image: Tensor, layer: str, place: Place) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.clone())
    )
    image = image.clone().requires_grad_()
    model(image)
    handle.remove()
    unit = seen[0][0][place]
    return torch.autograd.grad(unit, image)[0][0] * unit.detach()


# The fourteen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_net(style: str, method: str) -> None:
    model, images = randomized(STYLES[style]()), random_images(2, 3, 17, 15)
    for layer in ("conv2", "last"):
        recordings = [Recording(model, image[None], layer) for image in images]
        places = places_in(recordings[0].activations)
        assert any(recordings[0].projection(*place, method).any() for place in places)
        check_against(recordings, model, images, layer, places, method, 1e-5)
        check_against(recordings, model.double(), images.double(), layer, places, method, 1e-10)
        model.float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size", [(13, 14), (16, 15)])
def test_every_pool(name: str, method: str, size: tuple[int, int]) -> None:
    model = nn.Sequential(conv(3, 5), nn.ReLU(), POOLS[name](), conv(5, 6), nn.ReLU(), conv(6, 4))
    model, images = randomized(model).double(), random_images(1, 3, *size).double()
    recording = Recording(model, images, "5")
    places = places_in(recording.activations)
    check_against([recording], model, images, "5", places, method, 1e-10)
    expected = gradient_by_autograd(model, images, "5", places[1])
    assert difference(recording.projection(*places[1], "gradient"), expected) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_activation(name: str, method: str) -> None:
    model = Plain(OTHERS[name], OTHERS[name])
    check_activation(name, model, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_no_rectifier_passes_its_gradient(name: str, method: str) -> None:
    # One ReLU behind it, so that there is something to rectify.
    check_activation(name, Plain(nn.ReLU(), SMOOTH[name]), method)


@pytest.mark.parametrize("name", SMOOTH)
def test_deconvnet_without_a_rectifier_is_refused(name: str) -> None:
    model = randomized(Plain(SMOOTH[name], SMOOTH[name]))
    with pytest.raises(ValueError, match="there is no ReLU"):
        project(model, random_images(1, 3, 13, 14), [Unit(0, "last", 1, 2, 2)])


def check_activation(name: str, model: nn.Module, method: str) -> None:
    model, images = randomized(model).double(), random_images(1, 3, 13, 14).double()
    # torch's hardswish and hardsigmoid know a sixth in single precision only.
    limit = 1e-6 if "hard" in name.lower() else 1e-10
    check(model, images, "last", places_in(Recording(model, images, "last").activations), method, limit)


def test_the_methods_differ() -> None:
    """Else the tables above would prove little."""
    model, image = randomized(STYLES["module ReLU"]()), random_images(1, 3, 17, 15)
    recording = Recording(model, image, "last")
    deconvnet, guided, gradient = (recording.projection(1, 4, 4, method) for method in METHODS)
    assert difference(guided, deconvnet) > 0.05
    assert difference(gradient, deconvnet) > 0.05
    assert difference(gradient, guided) > 0.05


def test_spellings_of_one_net_give_one_projection() -> None:
    image = random_images(1, 3, 17, 15)
    styles = ("module ReLU", "functional ReLU", "method ReLU", "in-place ReLU", "one module in sequence", "clamp")
    results = [explicit_projection(randomized(STYLES[style]()), image, "last", 1, 3, 3) for style in styles]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("style", STYLES)
def test_where_captum_is_right(style: str) -> None:
    model, image = randomized(STYLES[style]()).double(), random_images(1, 3, 17, 15).double()
    recording = Recording(model, image, "last")
    differences = [
        difference(captum_projection(model, image, "last", place), recording.projection(*place))
        for place in places_in(recording.activations)
    ]
    if CAPTUM_IS_RIGHT[style]:
        assert max(differences) < 1e-10
    else:
        assert max(differences) > 1e-3


# The networks of torchvision


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision(name: str) -> None:
    size, layers = NETWORKS[name]
    network, images = torchvision_network(name), random_images(1, 3, *size)
    for layer in layers:
        recording = Recording(network, images, layer)
        places = [*places_in(recording.activations)[1:], *strongest_in(recording.activations)]
        for method in ("deconvnet", "guided"):
            assert any(recording.projection(*place, method).any() for place in places), layer
            check_against([recording], network, images, layer, places, method, 1e-5)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18"])
def test_captum_where_it_is_right(name: str) -> None:
    size, layers = NETWORKS[name]
    network, images = torchvision_network(name).double(), random_images(1, 3, *size).double()
    for layer in layers[1:]:
        places = places_in(Recording(network, images, layer).activations)[1:3]
        projection = project(network, images, [Unit(0, layer, *place) for place in places])
        for i, place in enumerate(places):
            expected = captum_projection(network, images, layer, place)
            assert difference(projection.on_image(i), expected) < 1e-10, (layer, place)


# The reference


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "densenet121", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_reference_agrees_with_captum(name: str) -> None:
    size, layers = NETWORKS[name]
    network, image = torchvision_network(name).double(), random_images(1, 3, *size).double()
    recording = Recording(network, image, layers[1])
    for place in places_in(recording.activations)[1:3]:
        expected = captum_projection(network, image, layers[1], place)
        assert difference(recording.projection(*place), expected) < 1e-10
        expected = captum_projection(network, image, layers[1], place, NeuronGuidedBackprop)
        assert difference(recording.projection(*place, "guided"), expected) < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_reference_agrees_with_autograd(name: str) -> None:
    size, (_, middle, deep) = NETWORKS[name]
    network, image = torchvision_network(name).double(), random_images(1, 3, *size).double()
    for layer in (middle, deep):
        recording = Recording(network, image, layer)
        place = places_in(recording.activations)[1]
        expected = gradient_by_autograd(network, image, layer, place)
        # torch's hardswish and hardsigmoid know a sixth in single precision only.
        assert difference(recording.projection(*place, "gradient"), expected) < 1e-6, layer


@pytest.mark.parametrize("name", [*OTHERS, *SMOOTH])
def test_reference_agrees_with_autograd_on_activations(name: str) -> None:
    activation = {**OTHERS, **SMOOTH}[name]
    model, image = randomized(Plain(activation, activation)).double(), random_images(1, 3, 13, 14).double()
    expected = gradient_by_autograd(model, image, "last", (2, 3, 3))
    limit = 1e-6 if "hard" in name.lower() else 1e-12
    assert difference(explicit_projection(model, image, "last", 2, 3, 3, "gradient"), expected) < limit


@pytest.mark.parametrize("style", STYLES)
def test_reference_agrees_with_autograd_on_styles(style: str) -> None:
    model, image = randomized(STYLES[style]()).double(), random_images(1, 3, 17, 15).double()
    expected = gradient_by_autograd(model, image, "last", (2, 2, 2))
    assert difference(explicit_projection(model, image, "last", 2, 2, 2, "gradient"), expected) < 1e-12


def test_reference_refuses_what_it_does_not_know() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Conv2d(4, 4, 3))
    with pytest.raises(NotImplementedError, match="LocalResponseNorm"):
        explicit_projection(model, random_images(1, 3, 9, 9), "2", 0, 0, 0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unflatten(1, (2, 2)))
    with pytest.raises(NotImplementedError, match="Unflatten"):
        explicit_projection(model, random_images(1, 3, 9, 9), "1", 0, 0, 0)


# Any stack


def sizes(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def stacks(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions and pools of every kind, each followed by a rectifier or batch normalization or neither."""
    modules: list[nn.Module] = []
    channels = 2
    for kind in [*draw(st.lists(st.sampled_from(("avg", "max", "conv")), min_size=1, max_size=4)), "conv"]:
        kernel, stride = draw(sizes(1 if kind == "conv" else 2, 3)), draw(sizes(1, 2))
        if kind == "conv":
            outputs = draw(st.sampled_from((2, 4)))
            padding, dilation = draw(sizes(0, 2)), draw(sizes(1, 2))
            modules.append(
                nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups=draw(st.sampled_from((1, 2))))
            )
            channels = outputs
        else:
            padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
            ceil_mode = draw(st.booleans())
            if kind == "max":
                modules.append(nn.MaxPool2d(kernel, stride, padding, draw(sizes(1, 2)), ceil_mode=ceil_mode))
            else:
                divisor = draw(st.sampled_from((None, None, 3)))
                modules.append(nn.AvgPool2d(kernel, stride, padding, ceil_mode, draw(st.booleans()), divisor))
        modules += draw(st.sampled_from(([], [nn.ReLU()], [nn.ReLU(True)], [nn.BatchNorm2d(channels), nn.ReLU(True)])))
    return nn.Sequential(*modules)


def shapes_along(model: nn.Sequential, image: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for name, module in model.named_children():
        image = module(image)
        yield name, module, image.clone()


@given(stacks(), sizes(7, 15), st.sampled_from(METHODS), st.integers(0, 1000), st.data())
@settings(max_examples=40, derandomize=True)
def test_any_stack(model: nn.Sequential, size: tuple[int, int], method: str, seed: int, data: st.DataObject) -> None:
    randomized(model, seed).double()
    image = random_images(1, 2, *size, seed=seed).double()
    try:
        with torch.no_grad():
            values = list(shapes_along(model, image))
    except RuntimeError:
        assume(False)  # nothing is left of so small an image
    assume(all(math.isfinite(value.abs().max()) for _, _, value in values))
    layer, _, value = [(name, module, value) for name, module, value in values if isinstance(module, nn.Conv2d)][-1]
    _, channels, rows, columns = value.shape
    place = st.tuples(st.integers(0, channels - 1), st.integers(0, rows - 1), st.integers(0, columns - 1))
    chosen = data.draw(place)
    expected = gradient_by_autograd(model, image, layer, chosen)
    assert difference(explicit_projection(model, image, layer, *chosen, "gradient"), expected) < 1e-10
    # A stack without any rectifier has nothing for the other methods to do, and may be refused.
    if not any(isinstance(module, nn.ReLU) for module in model[: int(layer)]):
        method = "gradient"
    check(model, image, layer, data.draw(st.lists(place, min_size=1, max_size=3, unique=True)), method, 1e-10)
