"""Networks of signals `(N, C, L)`: fields against what changes reach, numbers against plain computations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference.support import change_boxes, nan_boxes
from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnviz import layer_table, load, save
from lightning_cnnviz.core.layer_table.table import LayerTable
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode


class Block(nn.Module):
    """A residual block, as networks of ECGs have them."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 5, stride=stride, padding=2, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, 3, padding=2, dilation=2)
        self.beside = nn.Conv1d(width, width, 1, stride=stride)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + self.beside(x))


class Apart(nn.Module):
    """Every other sample, plus what lies before it."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 5::2] + x[:, :, :-5:2]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Conv1d(3, 4, 7, stride=2, padding=3), nn.Conv1d(4, 4, 4, dilation=3)),
    "groups": lambda: nn.Sequential(nn.Conv1d(3, 6, 3, groups=3), nn.Conv1d(6, 4, 5, stride=3, groups=2)),
    "pools": lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3)),
    "residual": lambda: nn.Sequential(nn.Conv1d(3, 4, 3), Block(4, 2), nn.MaxPool1d(2), Block(4, 2)),
    "nearest": lambda: nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.Upsample(scale_factor=2), nn.Conv1d(4, 4, 3)),
    "linear": lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2), nn.Upsample(scale_factor=2, mode="linear")),
    "transposed": lambda: nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.ConvTranspose1d(4, 4, 5, stride=2)),
    "reflected": lambda: nn.Sequential(nn.Conv1d(3, 4, 5, padding=2, padding_mode="reflect"), nn.Conv1d(4, 4, 3)),
    "slices": lambda: nn.Sequential(nn.Conv1d(3, 4, 3), Apart(), nn.Conv1d(4, 4, 2)),
    "image of one row": lambda: nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.Unflatten(1, (4, 1)), nn.Conv2d(4, 4, (1, 5), stride=(1, 2)), nn.Flatten(1, 2)
    ),
}  # fmt: skip


def reached(name: str, model: nn.Module) -> Tensor:
    """`(C, L', 2)`: first sample that each unit depends on, and the one behind the last, by trial."""
    boxes = change_boxes if name == "linear" else nan_boxes
    image = torch.rand(1, 3, 1, 192, dtype=torch.float64)
    with torch.no_grad():
        found = boxes(lambda images, see: see("out", model(images[:, :, 0])[:, :, None]), image)["out"]
    return found[:, 0, :, 1::2]


@pytest.mark.parametrize("name", MODELS)
def test_boxes_jumps_and_fields_are_those_of_what_changes_reach(name: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().double().eval()
    expected, bounds = reached(name, model), BoundsMode()
    signal = torch.rand(1, 3, 192, dtype=torch.float64)
    with torch.no_grad(), bounds.follow(signal):
        field = bounds.receptive_field("out", model(signal))
    assert field is not None
    assert field.image_size == (1, 192)
    assert field.boxes.shape[1] == 1
    assert bool((field.boxes[..., 0] == 0).all() and (field.boxes[..., 2] == 1).all())
    assert torch.equal(field.boxes[:, 0, :, 1::2].long().expand_as(expected), expected)

    middle = expected[0, expected.shape[1] // 2 - 2 : expected.shape[1] // 2 + 2]
    size, jump = int((middle[:, 1] - middle[:, 0]).amax()), float(middle[-1, 0] - middle[1, 0]) / 2
    for length in (40, 192):
        *_, last = layer_table(model.float(), (3, length)).rows
        assert (last.receptive_field, last.clipped, last.followed) == ((size,), False, True)
        assert last.jump == (jump,)


def test_rows_of_a_network_of_ecgs(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv1d(12, 16, 15, stride=2, padding=7), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(3, 2, 1),
        Block(16, 2), Block(16), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, place=place: shapes.update({place: tuple(out.shape[1:])}))
        for place, module in model.named_modules()
        if not list(module.children())
    ]
    model.eval()(torch.rand(1, 12, 1000))
    for hook in hooks:  # the table runs the network on longer signals, too
        hook.remove()
    table = layer_table(model, (12, 1000))
    assert table.input_size == (12, 1000)
    assert table.parameters == sum(parameter.numel() for parameter in model.parameters())
    of_modules = [row for row in table.rows if row.layer and row.type in ("Conv1d", "MaxPool1d", "AdaptiveAvgPool1d")]
    assert len(of_modules) == 9
    assert {row.layer: row.output_shape for row in of_modules} == {row.layer: shapes[row.layer] for row in of_modules}
    assert of_modules[0].macs == 500 * 16 * 15 * 12
    assert of_modules[0].formula == "(1000 + 2·7 - 15)/2 + 1 = 500.5, so 500"
    pool = next(row for row in of_modules if row.type == "MaxPool1d")
    assert (pool.input_shape, pool.kernel, pool.stride, pool.padding) == ((16, 500), (3,), (2,), (1,))
    assert next(row for row in table.rows if row.type == "Linear").receptive_field == (None,)
    save(table, tmp_path / "kept")
    kept = load(tmp_path / "kept")
    assert isinstance(kept, LayerTable)
    assert [vars(row) for row in kept.rows] == [vars(row) for row in table.rows]


def test_a_mean_over_the_signal_is_pooling() -> None:
    class Mean(nn.Module):
        @override
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(-1)

    *_, row, _ = layer_table(nn.Sequential(nn.Conv1d(2, 3, 3), Mean(), nn.Linear(3, 2)), (2, 20)).rows
    assert (row.kind, row.input_shape, row.output_shape, row.receptive_field) == ("pool", (3, 18), (3,), (None,))


def test_a_network_that_reads_positions_by_their_number_along_the_signal() -> None:
    """What recurrence sees is all that came before, and after."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru = nn.Conv1d(2, 3, 5), nn.GRU(3, 4, batch_first=True)

        @override
        def forward(self, x: Tensor) -> Tensor:
            states: Tensor = self.gru(self.conv(x).transpose(1, 2))[0]
            return states[:, -1]

    table = layer_table(Recurrent(), (2, 30))
    assert table.rows[0].receptive_field == (5,)
    assert table.rows[-1].receptive_field == (None,)


@pytest.mark.parametrize(
    ("conv", "size", "field"), [(nn.Conv1d(2, 8, 4, 4), (2, 64), (4,)), (nn.Conv2d(2, 8, 4, 4), (2, 16, 16), (4, 4))]
)
def test_the_projections_of_tokens_see_what_the_tokens_do(
    conv: nn.Module, size: tuple[int, ...], field: tuple[int, ...]
) -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attention = conv, nn.MultiheadAttention(8, 2, batch_first=True)

        @override
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            attended: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return attended

    rows = [row for row in layer_table(Attentive(), size).rows if row.kind == "linear"]
    assert [row.receptive_field for row in rows] == [field, (None,) * len(field)]


def test_functions_that_pool_signals_have_their_names() -> None:
    class Pooling(nn.Module):
        @override
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool1d(F.max_pool1d(x, 2), 3)

    assert [row.type for row in layer_table(Pooling(), (2, 30)).rows] == [
        "functional max_pool1d",
        "functional avg_pool1d",
    ]


@pytest.mark.parametrize("signal", [torch.rand(2, 30), torch.rand(1, 2, 30)])
def test_a_signal_in_place_of_a_size(signal: Tensor) -> None:
    table = layer_table(nn.Conv1d(2, 3, 5), signal)
    assert (table.input_size, table.rows[0].output_shape) == ((2, 30), (3, 26))


def test_what_is_no_signal_of_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not take a signal of 3x30: .*expected input.* to have 2 channels"):
        layer_table(nn.Conv1d(2, 3, 5), (3, 30))
    with pytest.raises(ValueError, match=r"does not take an image of 2x8x8: .*its convolutions are Conv1d, of signals"):
        layer_table(nn.Conv1d(2, 3, 5), (2, 8, 8))
    with pytest.raises(
        ValueError, match=r"no image and no signal: .* of a signal channels and length, as in \(12, 1000\)"
    ):
        layer_table(nn.Conv1d(2, 3, 5), (30,))
    with pytest.raises(ValueError, match=r"a signal \(C, L\), not \(4, 2, 30, 30\)"):
        layer_table(nn.Conv1d(2, 3, 5), torch.rand(4, 2, 30, 30))
