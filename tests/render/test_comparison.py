from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.comparison.units import LayerComparison, UnitComparison
from lightning_cnnviz.render.comparison import comparison_report
from lightning_cnnviz.report import Curve, Picture, Scalar, Table

NAN = torch.nan


def layer(name: str, other: str, own: list[float], partners: list[int], matched: list[float]) -> LayerComparison:
    values = (torch.tensor(numbers, dtype=torch.float64) for numbers in (own, matched))
    correlation, partner_correlation = values
    return LayerComparison(
        layer=name,
        other=other,
        cka=0.75,
        correlation=correlation,
        partners=torch.tensor(partners),
        partner_correlation=partner_correlation,
        chance=0.125,
    )


def comparison(*layers: LayerComparison, cka: Tensor, same_units: bool = True, left_out: int = 0) -> UnitComparison:
    names = tuple(f"o{place}" for place in range(cka.shape[1]))
    return UnitComparison(
        layers=layers, other_layers=names, cka=cka, same_units=same_units, images=1200, left_out=left_out
    )


SAME = comparison(
    layer("a", "a", [0.5, -0.25, NAN], [0, 2, -1], [0.5, 0.875, NAN]),
    layer("b", "b", [1.0], [0], [1.0]),
    cka=torch.tensor([[0.75, 0.1], [0.2, 0.75]]),
)
DIFFERENT = comparison(
    layer("a", "x", [NAN, NAN], [1, 0], [0.5, 0.25]), cka=torch.rand(1, 90), same_units=False, left_out=3
)


def item(report_of: UnitComparison, kind: type, name: str) -> object:
    (found,) = [one for one in comparison_report(report_of).items if isinstance(one, kind) and one.name == name]
    return found


def test_units_that_changed_most_come_first_and_constant_ones_not_at_all() -> None:
    table = item(SAME, Table, "changed_most")
    assert isinstance(table, Table)
    assert table.rows == (("a", 1, -0.25, "a", 2, 0.875), ("a", 0, 0.5, "a", 0, 0.5), ("b", 0, 1.0, "b", 0, 1.0))


def test_layers_stand_beside_chance() -> None:
    table = item(SAME, Table, "layers")
    assert isinstance(table, Table)
    assert table.columns[3:] == ("CKA", "same number r", "matched r", "by chance r")
    assert table.rows[0] == ("a", "a", 3, 0.75, 0.125, 0.6875, 0.125)
    curve = item(SAME, Curve, "likeness by depth")
    assert isinstance(curve, Curve)
    assert {series.name: series.y for series in curve.series} == {
        "CKA of the layer": (0.75, 0.75),
        "channels of the same number": (0.125, 1.0),
        "channels matched one to one": (0.6875, 1.0),
        "matched, images shuffled": (0.125, 0.125),
    }
    assert isinstance(item(SAME, Scalar, "a/cka"), Scalar)


def test_where_numbers_mean_nothing_none_is_compared_with_its_own() -> None:
    table = item(DIFFERENT, Table, "changed_most")
    assert isinstance(table, Table)
    assert table.rows == (("a", 1, None, "x", 0, 0.25), ("a", 0, None, "x", 1, 0.5))
    report = comparison_report(DIFFERENT)
    assert any("a channel's number means nothing" in note for note in report.notes)
    assert any("NaN or infinite: 3 images" in note for note in report.notes)
    layers = item(DIFFERENT, Table, "layers")
    assert isinstance(layers, Table)
    assert "same number r" not in layers.columns


@pytest.mark.parametrize("result", [SAME, DIFFERENT], ids=["same", "different"])
def test_the_matrix_is_a_picture(result: UnitComparison) -> None:
    picture = item(result, Picture, "cka")
    assert isinstance(picture, Picture)
    assert min(picture.pixels.shape[1:]) > 100
    assert "1,200 images" in picture.caption
