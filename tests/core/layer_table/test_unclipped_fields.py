"""Fields that no border cuts off, where the arithmetic can be done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.support import change_boxes
from torch import Tensor, nn

from lightning_cnnviz.core.layer_table import unclipped_fields
from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.core.layer_table.unclipped_fields import Field, UnclippedFields
from lightning_cnnviz.core.tracing.operations import OperationLog, log_operations


def field_of_last(model: nn.Module, size: tuple[int, int]) -> Field:
    image = torch.zeros(1, 1, *size)
    log = log_operations(model, image, values=False)
    return UnclippedFields(model, image, log, values=False).of(len(log.operations) - 1)


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (40, 40)])
def test_a_field_does_not_depend_on_the_image(size: tuple[int, int]) -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, (3, 5), stride=2, padding=(1, 2)) for _ in range(3)))
    field = field_of_last(model, size)
    assert field.size == (1 + 2 * (1 + 2 + 4), 1 + 4 * (1 + 2 + 4))
    assert field.jump == (8, 8)
    assert field.center == (0, 0)
    assert not field.clipped


def test_what_sees_all_of_any_image_sees_the_whole_image() -> None:
    field = field_of_last(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), (12, 12))
    assert (field.size, field.jump) == ((None, None), None)


def test_a_network_for_one_size_tells_what_it_can() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-2:] != (8, 8):
                raise ValueError("another size")
            return super().forward(x)  # type: ignore[no-any-return]

    field = field_of_last(Fixed(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)), (8, 8))
    assert field.size == (5, 5)
    assert field_of_last(Fixed(nn.Conv2d(1, 1, 7, padding=3), nn.Conv2d(1, 1, 7, padding=3)), (8, 8)).clipped


class Sum(nn.Module):
    """An image and the same moved."""

    def __init__(self, move: Callable[[Tensor], Tensor], keep: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.move, self.keep = move, keep

    def forward(self, x: Tensor) -> Tensor:
        return self.keep(x) + self.move(x)


def conv(stride: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, stride=stride, padding=1, **options)


REACHING: dict[str, Callable[[], nn.Module]] = {
    "bilinear": lambda: nn.Sequential(conv(2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "bicubic": lambda: nn.Sequential(conv(2), nn.Upsample(scale_factor=2, mode="bicubic")),
    "bilinear, reduced": lambda: nn.Sequential(nn.Upsample(scale_factor=0.5, mode="bilinear"), conv()),
    "antialiased": lambda: Sum(lambda x: F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True), lambda x: x[..., ::4, ::4]),  # noqa: E501
    "roll": lambda: nn.Sequential(Sum(lambda x: x.roll((9, 5), (2, 3))), conv()),
    "slices": lambda: Sum(lambda x: x[:, :, 12:, 7:], lambda x: x[:, :, :-12, :-7]),
    "space to depth": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 4, 3)),
    "depth to space": lambda: nn.Sequential(conv(2), nn.PixelShuffle(2), nn.Conv2d(1, 4, 3)),
    "nearest": lambda: nn.Sequential(conv(2), nn.Upsample(scale_factor=3), conv()),
    "transposed": lambda: nn.Sequential(conv(2), nn.ConvTranspose2d(4, 4, 5, stride=2, padding=1)),
    "reflected": lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(4, 4, 5, dilation=2)),
    "replicated": lambda: conv(padding_mode="replicate"),
    "circular": lambda: conv(padding_mode="circular"),
    "windows": lambda: nn.Sequential(conv(), Sum(lambda x: F.avg_pool2d(x, 5, 1, 2))),
}  # fmt: skip


@pytest.mark.parametrize("name", REACHING)
def test_a_field_is_what_changes_reach(name: str) -> None:
    torch.manual_seed(0)
    model, image = REACHING[name]().double(), torch.rand(1, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        boxes = change_boxes(lambda images, see: see("out", model(images)), image)["out"]
    units = boxes[
        :, boxes.shape[1] // 2 - 4 : boxes.shape[1] // 2 + 4, boxes.shape[2] // 2 - 4 : boxes.shape[2] // 2 + 4
    ]
    expected = tuple(int(n) for n in (units[..., 2:] - units[..., :2]).flatten(0, -2).amax(0))
    for size in (20, 64):
        (*_, last) = layer_table(model.float(), (4, size, size)).rows
        assert (last.receptive_field, last.clipped) == (expected, False)


class UNet(nn.Module):
    """Four levels, with bilinear enlargement, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(self.two(1 if level == 0 else 2) for level in range(5))
        self.up = nn.ModuleList(self.two(4) for _ in range(4))

    def two(self, channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.down[0](x)]
        for block in list(self.down)[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([levels.pop(), x], 1))
        return x


@pytest.mark.parametrize("size", [32, 256])
def test_a_u_net_does_not_see_the_whole_image(size: int) -> None:
    assert field_of_last(UNet(), (size, size)).size == (236, 236)


def test_what_is_moved_far_is_measured_on_a_longer_image() -> None:
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(40):
                x = x[:, :, 20:] + x[:, :, :-20]
            return x

    assert field_of_last(Far(), (1000, 8)).size == (801, 1)


def test_axes_that_look_alike_on_a_small_image_are_measured_one_by_one() -> None:
    blocks = [nn.Conv2d(1, 1, 3, padding=1) for _ in range(6)]
    field = field_of_last(nn.Sequential(*blocks, Rows(), nn.Conv2d(1, 1, 1)), (8, 8))
    assert field.size == (None, 13)


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2, keepdim=True)


def test_no_longer_image_is_tried_where_it_tells_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class ChannelsLast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1)
            return (x + x.roll(1, 1)).permute(0, 3, 1, 2)

    lengths: list[int] = []

    def counted(model: nn.Module, image: Tensor, **options: Any) -> OperationLog:
        lengths.append(max(image.shape))
        return log_operations(model, image, **options)

    monkeypatch.setattr(unclipped_fields, "log_operations", counted)
    field = field_of_last(ChannelsLast(), (16, 16))
    assert (field.size, field.clipped) == ((2, 1), False)
    assert max(lengths) < 2000


def test_rolls_that_add_up_are_no_whole_image() -> None:
    class Rolls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(60):
                x = x + x.roll(12, 2)
            return x

    field = field_of_last(Rolls(), (16, 16))
    assert (field.size, field.clipped) == ((721, 1), False)


class Reads(nn.Module):
    """Convolutions whose columns a recurrent layer reads from left to right."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(6, 3)
        self.recurrent = kind(4, 6, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        columns = self.conv(images).relu().mean(2).transpose(1, 2)
        logits: Tensor = self.fc(self.recurrent(columns)[0][:, -1])
        return logits


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_strips_end_where_a_recurrent_layer_begins(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = list[int]()

    def spy(*args: Any, **options: Any) -> Any:
        log = log_operations(*args, **options)
        logged.append(len(log.operations))
        return log

    monkeypatch.setattr(unclipped_fields, "log_operations", spy)
    model = Reads(kind)
    table = layer_table(model, (1, 4, 4))
    assert logged
    assert max(logged) < len(table.rows)  # a strip is a hundred times as long, and each position a dozen operations
    rows = {row.layer: row for row in table.rows}
    assert (rows["conv"].receptive_field, rows["conv"].clipped) == ((3, 3), False)
    assert rows["fc"].receptive_field == (None, None)
    assert not model.recurrent._forward_pre_hooks


class Halves(nn.Module):
    """Makes the upper and the lower half of its maps channels of one map."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(2, 3, 3), nn.Conv2d(6, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.before(images)
        count, channels, height, width = maps.shape
        halves = maps.view(count, channels, 2, height // 2, width).transpose(1, 2)
        made: Tensor = self.after(halves.reshape(count, 2 * channels, height // 2, width))
        return made


@pytest.mark.parametrize("size", [22, 42, 130])
def test_a_field_that_grows_with_the_image_is_that_of_the_image(size: int) -> None:
    rows = {row.layer: row for row in layer_table(Halves(), (2, size, size)).rows}
    # From the first row of a window in the upper half to the last one in the lower: half of the map apart.
    assert rows["after"].receptive_field == ((size - 2) // 2 + 5, 5)
    model, image = Halves().double(), torch.rand(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    made = model(image)
    unit = made[0, :, made.shape[2] // 2, made.shape[3] // 2].sum()
    reached = torch.autograd.grad(unit, image)[0][0].ne(0).any(0)
    spans = tuple(int(lines.nonzero().max() - lines.nonzero().min()) + 1 for lines in (reached.any(1), reached.any(0)))
    assert rows["after"].receptive_field == spans
