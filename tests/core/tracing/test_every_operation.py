"""Every operation that has reach, against perturbation: its boxes are exact, or it is said that it was not followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from reference.support import See, change_boxes, nan_boxes
from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing.calls import OperationReader, Operator
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode

Function = Callable[[Tensor], Tensor]

C, H, W = 4, 7, 9


def weights(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) + 0.1


def grid(x: Tensor, *, reach: float) -> Tensor:
    """Places that do not depend on the image, also between pixels and beyond the border."""
    generator = torch.Generator().manual_seed(0)
    places = (torch.rand(1, 5, 6, 2, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    return places.expand(len(x), -1, -1, -1)


def sampled(mode: str, padding: str, corners: bool) -> Function:
    return lambda x: F.grid_sample(x, grid(x, reach=1.6), mode=mode, padding_mode=padding, align_corners=corners)


def volume(x: Tensor) -> Tensor:
    return x[:, None]


def sequence(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), H, C * W)


def windowed_attention(x: Tensor) -> Tensor:
    """Rows attend to columns of their own row alone."""
    tokens = x.permute(0, 2, 3, 1)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).permute(0, 3, 1, 2)


def reversed_rows(x: Tensor) -> Tensor:
    return torch.arange(H).flip(0)[:, None].expand_as(x)


def put_into(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.tensor([0, 2])] = x[:, torch.tensor([1, 3])].flip(2)
    return x


# What NaN shows: all that is read, also with weight zero.
BY_NAN: dict[str, Function] = {
    "conv1d": lambda x: F.conv1d(sequence(x), weights(4, H, 3), stride=2, padding=1, dilation=2)[:, :, None],
    "conv1d, groups": lambda x: F.conv1d(x.flatten(2), weights(4, 2, 3), groups=2)[:, :, None],
    "conv_transpose1d": lambda x: F.conv_transpose1d(sequence(x), weights(H, 2, 3), stride=2, padding=1)[:, :, None],
    "conv3d": lambda x: F.conv3d(volume(x), weights(1, 1, 3, 2, 3), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2))[
        :, 0
    ],
    "conv_transpose3d": lambda x: F.conv_transpose3d(volume(x), weights(1, 2, 2, 3, 2), stride=(1, 2, 2))[:, :, 1],
    "conv with weights of the image": lambda x: torch.cat(
        [F.conv2d(one[None], one[None, :, :2, :1].expand(2, -1, -1, -1)) for one in x]
    ),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1)[:, :, None],
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1)[:, :, None],
    "max_pool3d": lambda x: F.max_pool3d(volume(x), (2, 3, 2), (1, 2, 1), (1, 1, 0), ceil_mode=True)[:, 0],
    "avg_pool3d": lambda x: F.avg_pool3d(volume(x), (2, 2, 3), (1, 1, 2), (0, 1, 1))[:, 0],
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5)[:, :, None],
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(volume(x), (2, 3, 4))[:, 0],
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(volume(x), (3, 2, 5))[:, 0],
    "unfold": lambda x: F.unfold(x, (2, 3), dilation=(2, 1), padding=(1, 2), stride=(1, 2))[:, :, None],
    "fold": lambda x: F.fold(x.flatten(1).view(len(x), 4, -1), (14, 10), (2, 2), stride=(2, 1)),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), (H, W), 3, padding=1, stride=2),
    "windows of a tensor": lambda x: x.unfold(2, 3, 2).unfold(3, 2, 3).amax((-1, -2)),
    "nearest in 3D": lambda x: F.interpolate(volume(x), (3, 10, 5))[:, 0],
    "nearest in 1D": lambda x: F.interpolate(x.flatten(2), 20, mode="nearest-exact")[:, :, None],
    "reflected": lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect"),
    "replicated": lambda x: F.pad(volume(x), (2, 1, 3, 0, 1, 1), mode="replicate")[:, 0],
    "circular": lambda x: F.pad(x, (2, 1, 3, 0), mode="circular"),
    "reflected in 1D": lambda x: F.pad(x.flatten(2), (2, 1), mode="reflect")[:, :, None],
    "running sum": lambda x: x.cumsum(2) + x.cumprod(3) * 0,
    "running maximum": lambda x: x.cummax(3)[0] + x.cummin(3)[0],
    "a sequence, step by step": lambda x: (
        nn.LSTM(W, W, batch_first=True).double().requires_grad_(False)(x[:, 0])[0][:, None]
    ),
    "running log-sum-exp": lambda x: x.logcumsumexp(2),
    "gathered": lambda x: x.gather(2, torch.arange(H).flip(0)[:, None].expand_as(x)),
    "turned": lambda x: x.rot90(1, (2, 3)) * 2,
    "turned back": lambda x: x.rot90(-1, (3, 2)).rot90(2, (-2, -1)),
    "below the diagonal": lambda x: x.tril(1) + x.transpose(2, 3).triu(-2).transpose(2, 3),
    "scattered": lambda x: torch.zeros_like(x).scatter(2, reversed_rows(x), x),
    "scattered, a number": lambda x: x.scatter(2, reversed_rows(x)[:, :, :3], 0.5),
    "scattered into": lambda x: x.clone().scatter_(2, reversed_rows(x)[:, :, :3], x[:, :, :4].flip(2)),
    "scattered and added": lambda x: x.scatter_add(2, reversed_rows(x) // 2, x),
    "scattered and reduced": lambda x: x.scatter_reduce(3, reversed_rows(x), x.flip(1), "sum"),
    "put": lambda x: x.index_put((torch.arange(len(x)), torch.tensor([1])), x[:, 2] * 2),
    "put into": lambda x: put_into(x),
    "copied to places": lambda x: x.index_copy(2, torch.tensor([4, 1]), x[:, :, 2:4]),
    "added at places": lambda x: x.index_add(2, torch.tensor([4, 4]), x[:, :, 2:4]),
    "filled at places": lambda x: x.index_fill(3, torch.tensor([4, 1]), 0.5),
    "a slice exchanged": lambda x: torch.slice_scatter(x, x[:, :, :3].flip(2), 2, 1, 6, 2),
    "a row exchanged": lambda x: torch.select_scatter(x, x[:, :, 5], 2, 1),
    "a diagonal exchanged": lambda x: torch.diagonal_scatter(x, x[:, :, :, 0], 0, 2, 3),
    "softmax": lambda x: x.softmax(2) + x.log_softmax(1),
    "reductions": lambda x: x.std(2, keepdim=True) + x.logsumexp(1, keepdim=True) + x.norm(dim=3, keepdim=True),
    "attention along rows": windowed_attention,
    "batched products": lambda x: x @ x.transpose(2, 3),
    "added products": lambda x: torch.baddbmm(x[:, 0, :, :1], x[:, 1], x[:, 2].transpose(1, 2))[:, None],
    "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), weights(3, 4), weights(3)).permute(0, 3, 1, 2),
    "vector product": lambda x: (x @ weights(W))[..., None],
    "Fourier transform of rows": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=3), n=W, dim=3),
    "Fourier transform": lambda x: torch.fft.ifft(torch.fft.fft2(x.to(torch.complex128)), dim=2).real,
    "group norm": lambda x: F.group_norm(x, 2),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (C,)).permute(0, 3, 1, 2),
    "instance norm": lambda x: F.instance_norm(x),
    "batch norm": lambda x: F.batch_norm(x, weights(C), weights(C)),
    "local response norm": lambda x: F.local_response_norm(x, 3),
}

# What a change shows: all that is read with weight.
BY_CHANGE: dict[str, Function] = {
    **{
        f"sampled, {mode}, {padding}, {corners}": sampled(mode, padding, corners)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (True, False)
    },
    "affine": lambda x: F.grid_sample(
        x,
        F.affine_grid(weights(1, 2, 3).expand(len(x), -1, -1), [len(x), 1, 5, 6], align_corners=True),
        align_corners=True,
    ),
    "linear in 1D": lambda x: F.interpolate(x.flatten(2), 20, mode="linear")[:, :, None],
    "trilinear": lambda x: F.interpolate(volume(x), scale_factor=(2, 1.5, 0.7), mode="trilinear")[:, 0],
    "trilinear, corners": lambda x: F.interpolate(volume(x), (6, 4, 12), mode="trilinear", align_corners=True)[:, 0],
    "bilinear": lambda x: F.interpolate(x, (4, 13), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic"),
    "transposed": lambda x: F.conv_transpose2d(x, weights(C, 2, 2, 3), stride=2, padding=1, output_padding=1),
    "area": lambda x: F.interpolate(x, (3, 4), mode="area"),
}

# Nobody knows, but from values: it is said, and the box is never too small.
NOT_FOLLOWED: dict[str, Function] = {
    "sampled where the image says": lambda x: F.grid_sample(
        x, x[:, :2, :5, :6].permute(0, 2, 3, 1), align_corners=True
    ),
    "deformed": lambda x: torchvision.ops.deform_conv2d(
        x, x[:, :1].repeat(1, 18, 1, 1), weights(2, C, 3, 3), padding=1
    ),
    "gathered where the image says": lambda x: x.gather(2, x.argsort(2)),
    "scattered where the image says": lambda x: torch.zeros_like(x).scatter(2, x.argsort(2), x),
    "put and added": lambda x: x.index_put((torch.arange(len(x)), torch.tensor([1])), x[:, 2], accumulate=True),
    "put back where they were": lambda x: F.max_unpool2d(
        *F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:]
    ),
}

# Every element of a line depends on all of it, which a NaN does not show: it goes to the end.
LINES: dict[str, Function] = {
    "sort": lambda x: x.sort(3)[0],
    "topk": lambda x: x.topk(W, dim=3)[0],
    "median": lambda x: x.median(3, keepdim=True)[0].expand_as(x),
    "mode": lambda x: x.mode(3, keepdim=True)[0].expand_as(x),
    "kthvalue": lambda x: x.kthvalue(2, dim=3, keepdim=True)[0].expand_as(x),
}


def outcome(function: Function, image: Tensor) -> tuple[Tensor, bool]:
    """The boxes `(C, H, W, 4)` of what a function gives, and whether all of its operations were followed."""
    bounds, estimated = BoundsMode(), False

    class Watch(OperationReader):
        @override
        def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            nonlocal estimated
            result = operator.func(*args, **kwargs)
            estimated |= bounds.estimated
            return result

    with torch.no_grad(), bounds.follow(image), Watch():
        made = function(skewed(image))
        field = bounds.receptive_field("made", made)
    assert field is not None
    return field.boxes.long().expand(*made.shape[1:], 4), not estimated


def skewed(image: Tensor) -> Tensor:
    """Boxes that are not just the place, and differ from channel to channel."""
    return torch.cat([F.pad(image[:, :2], (0, 0, 1, -1)), image[:, 2:]], 1)


def an_image() -> Tensor:
    return torch.rand(1, C, H, W, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1


def shown(function: Function) -> Callable[[Tensor, See], None]:
    return lambda image, see: see("made", function(skewed(image)))


@pytest.mark.parametrize("name", BY_NAN)
def test_a_box_is_what_nan_reaches(name: str) -> None:
    with torch.no_grad():
        expected = nan_boxes(shown(BY_NAN[name]), an_image())["made"]
    found, followed = outcome(BY_NAN[name], an_image())
    assert followed
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", BY_CHANGE)
def test_a_box_is_what_moves_with_a_pixel(name: str) -> None:
    with torch.no_grad():
        expected = change_boxes(shown(BY_CHANGE[name]), an_image(), tolerance=1e-12)["made"]
    found, followed = outcome(BY_CHANGE[name], an_image())
    assert followed
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_values_decide_is_said_to_be_not_followed(name: str) -> None:
    found, followed = outcome(NOT_FOLLOWED[name], an_image())
    assert not followed
    with torch.no_grad():
        expected = nan_boxes(shown(NOT_FOLLOWED[name]), an_image())
    reached = expected["made"][..., 2] > 0
    inside = (found[..., :2] <= expected["made"][..., :2]) & (found[..., 2:] >= expected["made"][..., 2:])
    assert bool(inside.all(-1)[reached].all())


@pytest.mark.parametrize("name", LINES)
def test_what_is_chosen_from_a_line_depends_on_all_of_it(name: str) -> None:
    found, followed = outcome(LINES[name], an_image())
    assert followed
    assert torch.equal(found, outcome(lambda x: x.softmax(3), an_image())[0])


# Under these names operations run on other devices, or in other builds of torch; or they take what has no reach.
ELSEWHERE = {
    *("convolution_overrideable", "cudnn_", "miopen_", "mkldnn_", "_mps_", "_nnpack_", "_slow_conv", "slow_conv"),
    *("_conv_depthwise", "conv_depthwise", "_convolution", "_native_batch_norm_legit", "_batch_norm", "_aa"),
    *("_scaled_dot_product_", "_grid_sampler_2d_cpu_fallback", "_safe_softmax"),
    *("dot", "addmv"),
}


def test_every_operation_with_windows_or_lines_is_among_them() -> None:
    met: set[str] = set()

    class Names(OperationReader):
        @override
        def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            met.add(operator.name)
            return operator.func(*args, **kwargs)

    with torch.no_grad(), Names():
        for function in (*BY_NAN.values(), *BY_CHANGE.values(), *LINES.values()):
            function(skewed(an_image()))
    kinds = (calls.CONVOLUTIONS, calls.POOLS_3D, calls.ADAPTIVE_POOLS, calls.ADAPTIVE_POOLS_3D, calls.INTERPOLATIONS,
             calls.UNFOLDINGS, calls.FOLDINGS, calls.SAMPLERS, calls.ALONG_A_LINE, calls.RUNNING, calls.LAYER_NORMS,
             calls.FOURIER_TRANSFORMS, calls.ATTENTIONS, calls.MATRIX_PRODUCTS, calls.MATRIX_PRODUCTS_ADDED,
             calls.BATCH_NORMS, calls.GROUP_NORMS, calls.TRIANGLES, calls.WRITES_AT_PLACES)  # fmt: skip
    missing = {name for kind in kinds for name in kind} - met
    assert {name for name in missing if not any(part in name for part in ELSEWHERE)} == set()
