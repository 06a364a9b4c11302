"""Networks put together at random from what real ones are made of; small, so that brute force can follow each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Step = tuple[str, dict[str, Any]]
"""A kind of step and its options: plain numbers and names, so that hypothesis can print and shrink them."""


class Network(nn.Sequential):
    """Steps in a row; each takes `(N, C, H, W)` and gives `(N, C', H', W')`."""

    def __init__(self, steps: list[Step], channels: int, size: tuple[int, int], seed: int) -> None:
        """Build the steps one by one; those that the size of the maps forbids are left out."""
        super().__init__()
        self.steps: list[Step] = []
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, channels, *size, generator=generator)
        with torch.no_grad():
            for name, options in steps:
                try:
                    step = _settled(STEPS[name](image.shape[1], **options), generator)
                    made = step(image.clone())
                except (RuntimeError, ValueError, AssertionError):  # too small for it
                    continue
                if made.numel() and max(made.shape) <= 24:
                    self.append(step)
                    self.steps.append((name, options))
                    image = made.clone()

    def __repr__(self) -> str:
        return f"Network of {self.steps}"


def _settled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights that keep activations in range, statistics as if of data."""
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 3
        values = torch.rand(parameter.shape, generator=generator) * 2 - 1
        parameter.data = values * (3 / fan_in) ** 0.5
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            offset = 0.5 if name.endswith("var") else -0.5
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + offset)
    return module.eval().requires_grad_(False)


def _groups(*channels: int, wanted: int) -> int:
    return math.gcd(wanted, *channels)


class Conv(nn.Conv2d):
    def __init__(self, channels: int, *, kernel: Any, out: int, groups: int, mode: str, **options: Any) -> None:
        groups = _groups(channels, out, wanted=groups)
        super().__init__(channels, out, kernel, groups=groups, padding_mode=mode, **options)


class Transposed(nn.ConvTranspose2d):
    def __init__(self, channels: int, *, kernel: Any, out: int, groups: int, **options: Any) -> None:
        super().__init__(channels, out, kernel, groups=_groups(channels, out, wanted=groups), **options)


def _conv(channels: int, **options: Any) -> nn.Conv2d:
    made = Conv(channels, **options)
    return _as(nn.Conv2d, made)


def _transposed(channels: int, **options: Any) -> nn.ConvTranspose2d:
    return _as(nn.ConvTranspose2d, Transposed(channels, **options))


def _as(kind: Any, module: nn.Module) -> Any:
    module.__class__ = kind  # the class that tables of classes know
    return module


class Activation(nn.Module):
    """A rectifier in one of its spellings, or another function of single values."""

    def __init__(self, channels: int, *, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.kind](x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_": lambda x: F.relu(x, inplace=True),
    "relu6_": lambda x: F.relu6(x, inplace=True),
    "clamp_": lambda x: x.clamp_(min=0),
    "hardswish_": lambda x: F.hardswish(x, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "mul_": lambda x: x.mul_(2).add_(0.1),
}
STRICT = ["leaky_relu", "leaky_relu_", "elu", "sigmoid", "mul_"]
"""Activations that pass on every change."""


def _pool(channels: int, *, kind: str, kernel: Any, padding: Any, **options: Any) -> nn.Module:
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    return (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(kernel, padding=padding, **options)


class Pad(nn.Module):
    def __init__(self, channels: int, *, pad: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.pad, self.mode = list(pad), mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, mode=self.mode)


class Resize(nn.Module):
    def __init__(self, channels: int, *, mode: str, scale: float, size: Any, corners: bool) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"size": size} if size else {"scale_factor": scale}
        if mode in ("bilinear", "bicubic"):
            self.options["align_corners"] = corners
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, mode=self.mode, **self.options)


class SubPixel(nn.Module):
    """A convolution, then channels to space, or space to channels and a convolution."""

    def __init__(self, channels: int, *, factor: int, up: bool) -> None:
        super().__init__()
        self.factor, self.up = factor, up
        shape = (channels, 2 * factor**2) if up else (channels * factor**2, 3)
        self.conv = nn.Conv2d(*shape, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return F.pixel_shuffle(self.conv(x), self.factor)
        return self.conv(F.pixel_unshuffle(x, self.factor))


class Residual(nn.Module):
    def __init__(self, channels: int, *, kernel: int, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv(x)
        if self.kind == "in place":
            branch += x
            return branch
        if self.kind == "into input":
            x += branch
            return x
        return x - branch if self.kind == "difference" else x + branch


class Concatenated(nn.Module):
    """Branches side by side: what went in and a convolution, or two convolutions of halves, or of different reach."""

    def __init__(self, channels: int, *, kernel: int, kind: str) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.kind, self.half = kind, half
        self.wide = nn.Conv2d(half if kind == "halves" else channels, 2, kernel, padding=kernel // 2)
        self.narrow = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "dense":
            return torch.cat([x, self.wide(x)], 1)
        if self.kind == "halves":
            return torch.cat([x[:, self.half :], self.wide(x[:, : self.half])], 1)
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class Pyramid(nn.Module):
    """Down, a convolution, up again, beside what went in: one level of a U-Net."""

    def __init__(self, channels: int, *, mode: str, pool: str) -> None:
        super().__init__()
        self.down = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
        self.conv = nn.Conv2d(channels, 2, 3, padding=1)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv(self.down(x))
        return torch.cat([x, F.interpolate(inner, size=x.shape[2:], mode=self.mode)], 1)


class Sliced(nn.Module):
    def __init__(self, channels: int, *, first: int, step: int, dim: int) -> None:
        super().__init__()
        self.first, self.step, self.dim = first, step, dim

    def forward(self, x: Tensor) -> Tensor:
        if self.dim == 1:
            return x[:, min(self.first, 1) :]
        return x[:, :, self.first :: self.step] if self.dim == 2 else x[..., self.first :: self.step]


class Rolled(nn.Module):
    def __init__(self, channels: int, *, shift: tuple[int, int]) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shift, (2, 3))


class Shuffled(nn.Module):
    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.groups = _groups(channels, wanted=groups)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, *, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, channels) if kind == "linear" else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            gate = self.fc(x.mean((2, 3))).sigmoid()
            return x * gate[:, :, None, None]
        gate = self.fc(self.pool(x)).sigmoid()
        return x.mul_(gate) if self.kind == "in place" else x * gate


class Written(nn.Module):
    """Some channels, or rows, are written over where they lie."""

    def __init__(self, channels: int, *, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.kind == "channel":
            x[:, :1] = made
        elif self.kind == "channel added":
            x[:, :1] += made
        elif self.kind == "rows":
            x[:, :, 1:] = x[:, :, :-1].clone()
        else:
            x[..., 0] = 0
        return x


class Windows(nn.Module):
    """Rows and columns cut in windows, each of which is mixed by itself, and put back."""

    def __init__(self, channels: int, *, window: int) -> None:
        super().__init__()
        self.window = window
        self.mix = nn.Linear(window**2, window**2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        k = self.window
        tiles = x.view(n, c, h // k, k, w // k, k).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h // k, w // k, k * k)
        mixed = self.mix(tiles).view(n, c, h // k, w // k, k, k).permute(0, 1, 2, 4, 3, 5)
        return mixed.reshape(n, c, h, w)


STEPS: dict[str, Callable[..., nn.Module]] = {
    "conv": _conv,
    "transposed": _transposed,
    "norm": lambda channels: nn.BatchNorm2d(channels),
    "activation": Activation,
    "pool": _pool,
    "pad": Pad,
    "resize": Resize,
    "subpixel": SubPixel,
    "residual": Residual,
    "concatenated": Concatenated,
    "pyramid": Pyramid,
    "sliced": Sliced,
    "rolled": Rolled,
    "shuffled": Shuffled,
    "squeeze": SqueezeExcite,
    "written": Written,
    "windows": Windows,
}

# Which steps to draw


def _step(name: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.fixed_dictionaries(options).map(lambda chosen: (name, chosen))


def _pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def _any_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def _steps(*, smooth: bool) -> st.SearchStrategy[Step]:
    """Every kind of step; `smooth`: those through which every change passes, and every way to interpolate."""
    pools = _any_of("avg") if smooth else _any_of("max", "avg")
    modes = ["nearest", "nearest-exact", "area"] + ["bilinear", "bicubic"] * smooth
    sizes = st.one_of(st.none(), _pair(1, 14))
    steps = [
        _step("conv", kernel=_pair(1, 4), out=st.integers(1, 6), groups=_any_of(1, 2, 4), stride=_pair(1, 3),
              padding=_pair(0, 3), dilation=_pair(1, 2), bias=st.booleans(),
              mode=_any_of("zeros", "reflect", "replicate", "circular")),
        _step("conv", kernel=st.just((3, 3)), out=st.integers(1, 6), groups=st.just(1), padding=st.just(1),
              mode=st.just("zeros")),
        _step("transposed", kernel=_pair(1, 4), out=st.integers(1, 4), groups=_any_of(1, 2), stride=_pair(1, 3),
              padding=_pair(0, 2), output_padding=_pair(0, 1), dilation=_pair(1, 2)),
        _step("norm"),
        _step("activation", kind=st.sampled_from(STRICT if smooth else list(ACTIVATIONS))),
        _step("pool", kind=pools, kernel=_pair(1, 3), stride=_pair(1, 3), padding=_pair(0, 1), ceil_mode=st.booleans()),
        _step("pad", pad=st.tuples(*[st.integers(-1, 3)] * 4),
              mode=_any_of("constant", "reflect", "replicate", "circular")),
        _step("resize", mode=st.sampled_from(modes), scale=_any_of(0.5, 1.5, 2.0, 3.0), size=sizes,
              corners=st.booleans()),
        _step("subpixel", factor=_any_of(2, 3), up=st.booleans()),
        _step("residual", kernel=_any_of(1, 3), kind=_any_of("sum", "in place", "into input", "difference")),
        _step("concatenated", kernel=_any_of(1, 3, 5), kind=_any_of("dense", "halves", "branches")),
        _step("pyramid", mode=st.sampled_from(modes), pool=pools),
        _step("sliced", first=st.integers(0, 2), step=st.integers(1, 3), dim=_any_of(1, 2, 3)),
        _step("rolled", shift=_pair(-3, 3)),
        _step("shuffled", groups=_any_of(2, 3)),
        _step("squeeze", kind=_any_of("conv", "linear", "in place")),
        _step("written", kind=_any_of("channel", "channel added", "rows", "zero")),
        _step("windows", window=_any_of(2, 3)),
    ]  # fmt: skip
    return st.one_of(steps)


@st.composite
def networks(draw: st.DrawFn, *, smooth: bool, longest: int = 6) -> tuple[Network, Tensor]:
    """A network and images `(3, C, H, W)` for it; in the order of bytes that is the default, or channels last."""
    channels, size = draw(st.integers(1, 3)), draw(_pair(3, 16))
    steps = draw(st.lists(_steps(smooth=smooth), min_size=1, max_size=longest))
    seed = draw(st.integers(0, 10**6))
    network = Network(steps, channels, size, seed)
    images = torch.rand(3, channels, *size, generator=torch.Generator().manual_seed(seed + 1))
    if draw(st.booleans()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    return network, images
