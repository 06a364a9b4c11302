from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnviz.core.layer_table.table import LayerTable, layer_table
from lightning_cnnviz.render.layer_table import layer_table_report, layer_table_text
from lightning_cnnviz.render.tables import aligned_text
from lightning_cnnviz.report import Scalar, Table


def of_torchvision(name: str, *size: int) -> LayerTable:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    return layer_table(model, (3, *size))


@pytest.fixture(scope="module")
def resnet() -> LayerTable:
    return of_torchvision("resnet18", 224, 224)


def test_columns_are_aligned_and_long_cells_keep_their_end() -> None:
    text = aligned_text(("name", "n"), [("a.very.long.path", "7"), ("b", "1234")], ("left", "right"), widest=8)
    assert text.splitlines() == ["name         n", "--------  ----", "…ng.path     7", "b         1234"]
    assert aligned_text(("name", "n"), [], ("left", "right")).splitlines() == ["name  n", "----  -"]


def test_a_report_has_a_row_a_layer_and_its_totals(resnet: LayerTable) -> None:
    report = layer_table_report(resnet)
    item, misfits, *totals = report.items
    assert isinstance(item, Table)
    assert (report.view, report.key(item)) == ("layer_table", "layer_table/layers")
    assert len(item.rows) == len(resnet.layers) == 31
    first = dict(zip(item.columns, item.rows[0], strict=True))
    assert first == {
        "layer": "conv1",
        "type": "Conv2d",
        "input": "3x224x224",
        "output": "64x112x112",
        "size": "(224+2·3\u22127)/2+1\xa0=\xa0112.5",
        "kernel": "7",
        "stride": "2",
        "padding": "3",
        "dilation": "1",
        "groups": 1,
        "jump": "2",
        "receptive field": "7",
        "first center": "0",
        "parameters": 9408,
        "filters": "64·7·7·3",
        "multiply-adds": 118013952,
        "activation bytes": 3211264,
    }
    last = dict(zip(item.columns, item.rows[-1], strict=True))
    assert (last["layer"], last["receptive field"], last["groups"]) == ("fc", "image", None)
    for table in (item, misfits):
        assert isinstance(table, Table)
        for place in range(len(table.columns)):  # a column holds one type
            assert len({type(row[place]) for row in table.rows if row[place] is not None}) == 1
    assert item.caption.startswith("11,689,512 parameters · 1.81 G multiply-adds · 13.8 MB of activations")
    assert [(total.name, total.value) for total in totals if isinstance(total, Scalar)] == [
        ("parameters", 11_689_512),
        ("multiply_adds", resnet.macs),
        ("activation_bytes", resnet.activation_bytes),
    ]


def test_what_does_not_fit_says_where_and_what_would(resnet: LayerTable) -> None:
    misfits = layer_table_report(resnet).items[1]
    assert isinstance(misfits, Table)
    assert misfits.name == "does_not_fit"
    assert misfits.rows[0] == (
        "conv1",
        "(224+2·3\u22127)/2+1\xa0=\xa0112.5",
        "of the padding, 1 row at the bottom and 1 column at the right not read; nothing of the input lost",
        "223 or 225 going into the layer would fit",
    )
    by_layer = {row[0]: row for row in misfits.rows}
    assert by_layer["layer2.0.downsample.0"][2:] == (
        "1 row at the bottom and 1 column at the right dropped",
        "55 or 57 going into the layer would fit",
    )


def test_text_is_a_table_that_a_terminal_holds(resnet: LayerTable) -> None:
    lines = layer_table_text(resnet).splitlines()
    assert lines[0] == "ResNet on an image of 3x224x224"
    assert max(len(line) for line in lines) <= 160
    assert not any(line != line.rstrip() for line in lines)
    (row,) = (line for line in lines if line.startswith("layer4.1.conv2 "))
    assert row.split() == [
        *("layer4.1.conv2", "Conv2d", "512x7x7", "(7+2·1-3)/1+1", "=", "7"),
        *("512·3·3·512", "=", "2,359,296", "116", "M", "100", "kB", "32", "435", "0"),
    ]
    assert "9,600 of the parameters in norms and others, not shown" in layer_table_text(resnet)


def test_text_names_biases_reuse_and_what_differs_along_the_axes() -> None:
    shared = nn.Conv2d(10, 10, (3, 1), stride=(2, 1))
    model = nn.Sequential(nn.Conv2d(3, 10, 5, padding=2), shared, nn.ReLU(), shared, nn.AvgPool2d(2, ceil_mode=True))
    text = layer_table_text(layer_table(model, (3, 32, 33)))
    told = " ".join(text.split())  # without the ends of lines
    assert "10·(5·5·3+1) = 760" in text
    (again,) = (line for line in text.splitlines() if line.startswith("1 #2"))
    assert "shared" in again
    assert "4 x 1" in again
    assert "11 x 5" in again
    assert "- 1: (32 - 3)/2 + 1 = 15.5: 1 row at the bottom dropped; 31 or 33 going into the layer would fit" in text
    assert (
        "rounded up, the last windows overhang by 1 column at the right; 32 or 34 going into the layer would fit"
        in told
    )


def test_what_is_said_of_several_layers_is_said_once() -> None:
    report = layer_table_report(layer_table(nn.Sequential(nn.Conv2d(1, 1, 5)), (1, 32, 32)))
    assert report.items[1].rows == (  # type: ignore[union-attr]
        ("0", "32\xa0x\xa032\xa0to\xa028\xa0x\xa028", "shrinks", "padding 2 would keep the size"),
    )

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twins = nn.ModuleList(nn.Conv2d(1, 1, 3, stride=2) for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([twin(x) for twin in self.twins], 1)

    remarks = layer_table_report(layer_table(Twins(), (1, 10, 10))).items[1]
    assert isinstance(remarks, Table)
    assert remarks.rows[0][0] == "twins.0, twins.1, twins.2, twins.3 and 2 more"


def test_what_does_not_run_is_told() -> None:
    class Spare(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3, padding=1)
            self.spare = nn.Linear(10, 10)

    *_, note = layer_table_report(layer_table(Spare(), (3, 8, 8))).notes
    assert note == "110 of the parameters, in spare, do not run in eval mode."


def test_a_field_that_borders_may_cut_off_is_marked() -> None:
    class Strict(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-2:] != (8, 8):
                raise ValueError("8 x 8 only")
            return super().forward(x)

    report = layer_table_report(layer_table(Strict(1, 1, 5, stride=4, padding=2), (1, 8, 8)))
    assert isinstance(report.items[0], Table)
    assert [row[11] for row in report.items[0].rows] == [">=5"]
    assert "within the borders of this image only" in report.notes[-1]


def test_an_empty_network_has_an_empty_table() -> None:
    table = layer_table(nn.Identity(), (3, 8, 8))
    assert table.rows == ()
    assert "0 parameters · 0 multiply-adds · 0 B of activations" in layer_table_text(table)
    assert layer_table_report(table).items[0].rows == ()  # type: ignore[union-attr]
