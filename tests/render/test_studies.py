from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from studies.study_parts import ablation_result, sample_efficiency_result

from lightning_cnnviz.render.studies import ablation_report, report_text, sample_efficiency_report
from lightning_cnnviz.report import Curve, Scalar, Table
from lightning_cnnviz.studies.results import SampleEfficiency


def items(result: SampleEfficiency, kind: type) -> list[Any]:
    return [item for item in sample_efficiency_report(result).items if isinstance(item, kind)]


def test_the_table_says_mean_and_spread() -> None:
    result = sample_efficiency_result()
    table = items(result, Table)[0]
    assert table.columns == ("network", "accuracy in %", "5 a class", "15 a class", "30 a class")
    values = result.class_mean[1, 2].tolist()
    mean = sum(values) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    row = next(row for row in table.rows if row[:2] == ("from scratch", "mean of classes"))
    assert row[4] == f"{100 * mean:.1f} ± {100 * std:.1f}"
    (curve,) = items(result, Curve)
    series = next(series for series in curve.series if series.name == "from scratch")
    assert series.x == (5, 15, 30)
    assert series.y[2] == pytest.approx(100 * mean)
    assert series.high is not None
    assert series.high[2] == pytest.approx(min(100, 100 * (mean + std)))
    scalars = {scalar.name: scalar.value for scalar in items(result, Scalar)}
    assert scalars["scratch/30"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("data", "classes", "expected"),
    [
        ("Caltech101", 101, ("\N{EN DASH}", "83.8", "86.5")),
        ("101_ObjectCategories", 102, ("\N{EN DASH}", "83.8", "86.5")),
        ("Caltech256", 257, ("\N{EN DASH}", "65.7", "70.6")),
        ("caltech101", 20, None),
        ("photos", 101, None),
    ],
)
def test_the_papers_figures_stand_beside_its_own_data_alone(data: str, classes: int, expected: Any) -> None:
    result = sample_efficiency_result(data, classes)
    table, (curve,) = items(result, Table)[0], items(result, Curve)
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows.get("Zeiler & Fergus 2013, pretrained") == expected
    names = [series.name for series in curve.series]
    assert ("Zeiler & Fergus 2013, from scratch" in names) == (expected is not None)


def test_one_seed_has_no_spread() -> None:
    result = sample_efficiency_result(seeds=1)
    table, (curve,) = items(result, Table)[0], items(result, Curve)
    assert not any("±" in str(cell) for row in table.rows for cell in row)
    assert all(series.low is None for series in curve.series)
    assert "one seed" in " ".join(sample_efficiency_report(result).notes)


def test_an_ablation_is_a_table() -> None:
    report = ablation_report(ablation_result())
    table = next(item for item in report.items if isinstance(item, Table))
    assert table.columns[4:] == ("error in %", "rise in points", "error, paper", "rise, paper")
    dash = "\N{EN DASH}"
    assert table.rows == (
        ("the whole network", 1000, 0, "0.0", "30.0 ± 14.1", dash, "40.5", dash),
        # Of both seeds the rise is the same, though the errors are not.
        ("without a", 400, 600, "60.0", "40.0 ± 14.1", "+10.0 ± 0.0", "45.4", "+4.9"),
        ("b of 9", 1200, -200, "-20.0", "15.0 ± 7.1", "-15.0 ± 7.1", dash, dash),
    )
    assert table.caption == "Top-1 error on the test images: mean ± std over seeds; the paper's figures: A paper"
    scalars = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    assert scalars["without a"] == pytest.approx(0.4)
    without_paper = tuple(replace(variant, paper=None) for variant in ablation_result().variants)
    whole = replace(ablation_result(), variants=without_paper)
    assert len(next(item for item in ablation_report(whole).items if isinstance(item, Table)).columns) == 6


def test_a_report_in_a_terminal_is_its_first_table_and_its_notes() -> None:
    lines = report_text(ablation_report(ablation_result())).splitlines()
    assert lines[0] == "What the layers are worth"
    assert lines[2].split()[:2] == ["variant", "parameters"]
    assert any(line.startswith("b of 9") and "1,200" in line for line in lines)
    assert lines[-1].startswith("Rise: by how many points")
    # Numbers stand at the right, words at the left.
    rows = [line for line in lines if line.startswith(("the whole network", "without a", "b of 9"))]
    assert (
        len({line.index(number) + len(number) for line, number in zip(rows, ("1,000", "400", "1,200"), strict=True)})
        == 1
    )
