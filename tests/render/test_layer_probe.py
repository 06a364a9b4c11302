from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.probing.probe import LayerProbe, ProbeScores
from lightning_cnnviz.core.probing.protocols import Protocol, find_protocol
from lightning_cnnviz.render.layer_probe import layer_probe_report, online_probe_report
from lightning_cnnviz.report import Curve, Report, Scalar, Table

THREE = Protocol(splits=3, heads=("svm", "knn"))


def scores(layer: str, accuracy: list[list[float]], protocol: Protocol = THREE) -> ProbeScores:
    values = torch.tensor(accuracy, dtype=torch.float64)
    strengths = torch.full_like(values, 0.1)
    strengths[0, 0] = 10.0
    return ProbeScores(
        layer=layer,
        heads=protocol.heads,
        accuracy=values,
        C=strengths,
        converged=torch.ones_like(values) > 0,
        dimensions=64,
        classes=4,
        protocol=protocol,
        digest="ab12" * 16,
    )


def found(protocol: Protocol = THREE) -> LayerProbe:
    shallow = scores("conv1", [[0.5, 0.6, 0.7], [0.4, 0.4, 0.4]], protocol)
    deep = scores("conv2", [[0.8, 0.8, 0.8], [0.7, 0.8, 0.9]], protocol)
    return LayerProbe(scores=(shallow, deep), images=(120, 40))


def parts(report: Report) -> tuple[Curve, Table]:
    curve, table = report.items[:2]
    assert isinstance(curve, Curve)
    assert isinstance(table, Table)
    return curve, table


def test_accuracy_rises_with_depth_within_bands_of_a_standard_deviation() -> None:
    report = layer_probe_report(found())
    curve, table = parts(report)
    assert [series.name for series in curve.series] == ["SVM", "kNN", "chance"]
    svm, _, chance = curve.series
    assert svm.x == (1.0, 2.0)
    assert svm.y == pytest.approx((60.0, 80.0))
    assert svm.low == pytest.approx((50.0, 80.0))
    assert svm.high == pytest.approx((70.0, 80.0))
    assert chance.y == (25.0, 25.0)
    assert curve.caption == ("Learned from four fifths of the images of each of 4 classes, 3 splits")
    assert table.columns == ("layer", "features", "svm in %", "std of svm", "knn in %", "std of knn", "C of svm")
    assert table.rows == (
        ("conv1", 64, 60.0, 10.0, 40.0, 0.0, "0.1, 10"),
        ("conv2", 64, 80.0, 0.0, 80.0, 10.0, "0.1, 10"),
    )
    numbers = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    expected = {"conv1/svm": 0.6, "conv1/knn": 0.4, "conv2/svm": 0.8, "conv2/knn": 0.8}
    assert numbers == pytest.approx(expected)
    assert next(report.key(item) for item in report.items if isinstance(item, Scalar)) == "layer_probe_stats/conv1/svm"
    assert "Features of 120 images to learn from and 40 to test on." in report.notes
    assert any("Splits ab12ab12ab12ab12 (seed 0)" in note for note in report.notes)


def test_random_weights_stand_beside() -> None:
    control = (scores("conv1", [[0.3] * 3, [0.2] * 3]), scores("conv2", [[0.25] * 3, [0.2] * 3]))
    report = layer_probe_report(replace(found(), control=control))
    curve, table = parts(report)
    assert [series.name for series in curve.series][2:] == ["SVM, random weights", "kNN, random weights", "chance"]
    assert curve.series[2].y == pytest.approx((30.0, 25.0))
    assert table.columns[-4::2] == ("svm, random weights in %", "knn, random weights in %")
    assert table.rows[1][-4:] == (25.0, 0.0, 20.0, 0.0)
    assert "Random weights: the same network, all layers initialized anew." in report.notes


def test_a_single_split_has_no_band() -> None:
    one = find_protocol("full", heads=("svm", "knn"))
    single = LayerProbe(scores=(scores("conv1", [[0.5], [0.25]], one),))
    curve, table = parts(layer_probe_report(single))
    assert curve.series[0].low is None
    assert table.rows[0][2:4] == (50.0, 25.0)
    assert curve.y_label == "test accuracy in %"
    assert curve.caption.startswith("Protocol full: learned from four fifths of the images of each of 4 classes")
    curve, _ = parts(layer_probe_report(replace(single, images=(120, 40))))
    assert curve.caption.startswith("Protocol full: learned from all images of each of 4 classes")


def test_what_a_paper_printed_stands_beside_its_protocol() -> None:
    published = find_protocol("caltech101-30", splits=3, heads=("svm", "knn"))
    report = layer_probe_report(found(published))
    (paper,) = (item for item in report.items if isinstance(item, Table) and item.name == "paper")
    assert [row[0] for row in paper.rows] == [
        "Zeiler & Fergus (2013), Table 4, percent",
        "Zeiler & Fergus (2013), Table 7, percent",
    ]
    assert "7 85.5; softmax" in str(paper.rows[1][1])
    assert not [item for item in layer_probe_report(found()).items if isinstance(item, Table) and item.name == "paper"]


def test_a_solver_that_gave_up_is_named() -> None:
    slow = found()
    slow.scores[1].converged[0, 1] = False
    notes = layer_probe_report(slow).notes
    assert notes[-1] == "The solver did not reach its tolerance at conv2."
    assert not any("tolerance" in note for note in layer_probe_report(found()).notes)


def test_a_best_c_at_the_end_of_what_was_tried_is_told() -> None:
    inside = torch.ones(2, 3, dtype=torch.bool)
    tried = torch.tensor([0.1, 10.0], dtype=torch.float64).expand(2, 3, 2).clone()
    probed = found()
    assert "C from 0.1, 1, 10." in " ".join(layer_probe_report(probed).notes)  # of an earlier version: not known
    probed = replace(
        probed, scores=tuple(replace(one, bracketed=inside.clone(), tried=tried.clone()) for one in probed.scores)
    )
    notes = " ".join(layer_probe_report(probed).notes)
    assert "C from 0.1, 1, 10." in notes
    assert "beyond" not in notes
    bracketed, reached = probed.scores[0].bracketed, probed.scores[1].tried
    assert bracketed is not None
    assert reached is not None
    bracketed[0, :2] = False
    reached[0, 1, 1] = 1e5
    reached[1] = torch.nan  # kNN has no C
    notes = " ".join(layer_probe_report(probed).notes)
    assert "C was looked for beyond the ends where the best one was: from 0.1 up to 100000." in notes
    assert "SVM: the best C was at an end of all that were tried in 2 of 6 fits: it may do better beyond" in notes
    assert "kNN: the best" not in notes


def test_layers_stand_by_name_along_the_axis_whatever_their_number() -> None:
    many = LayerProbe(scores=tuple(scores(f"conv{number}", [[0.5] * 3, [0.5] * 3]) for number in range(30)))
    curve, _ = parts(layer_probe_report(many))
    assert curve.x_names == tuple(f"conv{number}" for number in range(30))
    assert [series.name for series in curve.series if series.reference] == ["chance"]


def online(left_out: list[int]) -> OnlineScores:
    accuracy = torch.tensor([0.5, 0.75], dtype=torch.float64)
    return OnlineScores(
        layers=("conv1", "conv2"),
        accuracy=accuracy,
        images=1000,
        classes=10,
        batches=320,
        left_out=torch.tensor(left_out),
    )


def test_online_probes_have_a_view_of_their_own() -> None:
    report = online_probe_report(online([0, 0]))
    curve, table = parts(report)
    assert report.key(curve) == "online_probe/accuracy by depth"
    assert curve.series[0].y == (50.0, 75.0)
    assert curve.series[1].y == (10.0, 10.0)
    assert table.rows == (("conv1", 50.0), ("conv2", 75.0))
    numbers = {report.key(item): item.value for item in report.items if isinstance(item, Scalar)}
    assert numbers == {"online_probe_stats/conv1/accuracy": 0.5, "online_probe_stats/conv2/accuracy": 0.75}
    assert report.notes[1] == "Learned from 320 training batches, tested on 1,000 images."
    assert len(report.notes) == 2
    broken = online_probe_report(online([0, 7])).notes
    assert broken[2] == "Left out of training, for features that are NaN or infinite: 7 at conv2."
