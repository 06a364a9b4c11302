"""Networks of volumes `(N, C, D, H, W)`: fields against what changes reach, numbers against plain computations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from reference.other_axes import Branches3d
from reference.support import nan_boxes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_cnnviz import layer_table, load, save
from lightning_cnnviz.core.layer_table.table import LayerTable
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode
from lightning_cnnviz.render.layer_table import layer_table_text


class Block(nn.Module):
    """A residual block that goes on in space, and not in time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, stride=(1, 2, 2), padding=1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.beside = nn.Conv3d(width, width, 1, stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.first(x)) + self.beside(x)).relu()  # type: ignore[no-any-return]


class Frames(nn.Module):
    """Every other frame, plus the one before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1::2] + x[:, :, :-1:2]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(
        nn.Conv3d(2, 3, (3, 5, 4), stride=(1, 2, 2), padding=(1, 2, 0)), nn.Conv3d(3, 2, (2, 3, 3))
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv3d(2, 4, 3, groups=2), nn.Conv3d(4, 4, 3, padding=1, dilation=(1, 1, 2), groups=2)
    ),
    "pools": lambda: nn.Sequential(
        nn.Conv3d(2, 3, 3), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.AvgPool3d((2, 1, 2)), nn.Conv3d(3, 2, 2)
    ),
    "residual": lambda: nn.Sequential(nn.Conv3d(2, 3, (1, 3, 3)), Block(3), nn.Conv3d(3, 2, 3)),
    "transposed": lambda: nn.Sequential(nn.Conv3d(2, 3, 3, stride=2), nn.ConvTranspose3d(3, 2, (2, 3, 4), stride=2)),
    "nearest": lambda: nn.Sequential(nn.Conv3d(2, 3, 3, stride=2), nn.Upsample(scale_factor=2), nn.Conv3d(3, 2, 2)),
    "slices": lambda: nn.Sequential(nn.Conv3d(2, 3, 3), Frames(), nn.Conv3d(3, 2, (2, 2, 2))),
}


@pytest.mark.parametrize("name", MODELS)
def test_boxes_jumps_and_fields_are_those_of_what_changes_reach(name: str) -> None:
    torch.manual_seed(1)
    model, bounds = MODELS[name]().eval(), BoundsMode()
    volume = torch.rand(1, 2, 15, 26, 28)
    with torch.no_grad():
        expected = nan_boxes(lambda images, see: see("out", model(images)), volume)["out"]
        with bounds.follow(volume):
            field = bounds.receptive_field("out", model(volume))
    assert field is not None
    assert field.image_size == (15, 26, 28)
    assert torch.equal(field.boxes.long().expand_as(expected), expected)

    # Of units in the middle, all of which see no border: the size of the largest, and how far neighbors are apart.
    *_, last = layer_table(model, (2, 15, 26, 28)).rows
    assert (last.clipped, last.followed) == (False, True)
    sizes = expected[..., 3:] - expected[..., :3]
    inside = ((expected[..., :3] > 0) & (expected[..., 3:] < torch.tensor([15, 26, 28]))).all(-1)
    assert last.receptive_field == tuple(sizes[inside].amax(0).tolist())
    first = expected[0, ..., :3]
    for axis in range(3):
        assert last.jump is not None
        # An enlarged map's neighbors may see the same: over two steps, they have moved by two jumps.
        middle = [side // 2 for side in first.shape[:3]]
        before, behind = (list(middle) for _ in range(2))
        before[axis], behind[axis] = middle[axis] - 1, middle[axis] + 1
        if (
            before[axis] > 0
            and behind[axis] < first.shape[axis] - 1
            and bool(inside[0][tuple(before)] & inside[0][tuple(behind)])
        ):
            moved = int(first[tuple(behind)][axis] - first[tuple(before)][axis])
            assert moved == 2 * last.jump[axis]


def test_rows_of_r3d_18(tmp_path: Path) -> None:
    model = torchvision.models.video.r3d_18().eval()
    table = layer_table(model, (3, 8, 32, 32))
    assert table.input_size == (3, 8, 32, 32)
    assert table.parameters == sum(parameter.numel() for parameter in model.parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv3d, nn.Linear, nn.AdaptiveAvgPool3d)):
            module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))  # type: ignore[misc]
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.rand(1, 3, 8, 32, 32))
    own = {row.layer: row.output_shape for row in table.rows if row.layer in shapes}
    assert own == shapes
    assert 2 * table.macs == flops.get_total_flops()
    stem = table.rows[0]
    assert (stem.kernel, stem.stride, stem.padding) == ((3, 7, 7), (1, 2, 2), (1, 3, 3))
    assert (stem.receptive_field, stem.jump, stem.first_center) == ((3, 7, 7), (1, 2, 2), (0, 0, 0))
    # Araujo et al.'s sums, by hand: each block of a stage adds (kernel - 1) * jump twice.
    (deep,) = (row for row in table.rows if row.layer == "layer4.1.conv2.0")
    across = 7 + 2 * 2 * 4 + 2 * (2 + 4 + 4 + 4) + 2 * (4 + 8 * 3) + 2 * (8 + 16 * 3)
    assert across == 219
    assert deep.receptive_field == (3 + 2 * 4 + 2 * (1 + 2 * 3) + 2 * (2 + 4 * 3) + 2 * (4 + 8 * 3), across, across)
    assert table.rows[-1].receptive_field == (None, None, None)
    save(table, tmp_path / "kept")
    kept = load(tmp_path / "kept")
    assert isinstance(kept, LayerTable)
    assert [vars(row) for row in kept.rows] == [vars(row) for row in table.rows]
    text = layer_table_text(kept)
    assert text.startswith("VideoResNet on a volume of 3x8x32x32\n")
    assert "Jump: pixels from a unit to the next, deep, down and across." in text


def test_a_mean_over_the_volume_is_pooling() -> None:
    (row,) = (row for row in layer_table(Branches3d(), (2, 5, 18, 21)).rows if row.output_shape == (3,))
    assert (row.kind, row.input_shape, row.receptive_field) == ("pool", (3, 1, 2, 4), (None, None, None))


def test_tensors_are_taken_and_sizes_of_others_refused() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 3))
    wanted = [row.output_shape for row in layer_table(model, (1, 4, 5, 6)).rows]
    for volume in (torch.rand(1, 4, 5, 6), torch.rand(1, 1, 4, 5, 6)):
        assert [row.output_shape for row in layer_table(model, volume).rows] == wanted == [(2, 2, 3, 4)]
    with pytest.raises(ValueError, match=r"of a volume, and Sequential has no Conv3d"):
        layer_table(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 4, 5, 6))
    with pytest.raises(ValueError, match=r"does not take a volume of 2x4x5x6"):
        layer_table(model, (2, 4, 5, 6))
    with pytest.raises(ValueError, match="Conv3d, of clips or volumes"):
        layer_table(model, (1, 5, 6))
