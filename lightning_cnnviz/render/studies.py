"""Results of studies as reports: accuracy against images a class, and what layers are worth."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_cnnviz.render.tables import NOT_KNOWN, table_text
from lightning_cnnviz.report import Curve, Item, Number, Report, Scalar, Series, Table
from lightning_cnnviz.studies.results import AblationStudy, SampleEfficiency, StudyResult

__all__ = ["ablation_report", "percent", "report_text", "sample_efficiency_report"]

_WORDS = {
    "pretrained-head": "pretrained, head alone",
    "pretrained-full": "pretrained, end to end",
    "scratch": "from scratch",
}
# Mean accuracy of the classes in %, by images a class: their pretrained network, and the same from scratch.
_PAPER = "Zeiler & Fergus 2013"
_CALTECH: dict[str, tuple[tuple[int, int], dict[str, dict[int, float]]]] = {
    "101": ((101, 102), {"pretrained": {15: 83.8, 30: 86.5}, "from scratch": {15: 22.8, 30: 46.5}}),
    "256": (
        (256, 257),
        {
            "pretrained": {15: 65.7, 30: 70.6, 45: 72.7, 60: 74.2},
            "from scratch": {15: 9.0, 30: 22.5, 45: 31.2, 60: 38.8},
        },
    ),
}


def sample_efficiency_report(result: SampleEfficiency) -> Report:
    """Draw accuracy against images a class, one line a variant with a band of one standard deviation over seeds.

    The paper's own figures stand beside, where the data is the paper's. Scalars are accuracies, 0 to 1; table and
    chart are in percent.
    """
    paper = _paper_accuracies(result)
    items: list[Item] = [_accuracy_curve(result, paper), _accuracy_table(result, paper)]
    items += [
        Scalar(f"{variant}/{count}", float(result.accuracies(variant, count).mean()))
        for variant in result.variants
        for count in result.per_class
    ]
    items.append(_accuracy_numbers(result))
    several = len(result.seeds) > 1
    over = f"{len(result.seeds)} seeds" if several else "one seed"
    notes = [
        _tested_on(result),
        f"Each training: {result.budget}; {over}, each with images, fresh weights and an order of its own"
        + ("; mean ± standard deviation." if several else "."),
        *result.notes,
    ]
    if paper:
        notes.append(f"{_PAPER}: their network and their split, for comparison.")
    return Report("sample_efficiency", title="Accuracy against images a class", items=tuple(items), notes=tuple(notes))


def ablation_report(result: AblationStudy) -> Report:
    """Put a network's variants into a table: parameters, error and its rise; what a paper printed beside it.

    Scalars are errors, 0 to 1; the table is in percent.
    """
    changes = tuple((variant.name, change) for variant in result.variants for change in variant.changes or ("none",))
    items: list[Item] = [
        _ablation_table(result),
        Table("changes", ("variant", "layer"), changes, caption="What was done to the layers"),
    ]
    items += [
        Scalar(variant.name, float(error.mean())) for variant, error in zip(result.variants, result.error, strict=True)
    ]
    items.append(_ablation_numbers(result))
    several = len(result.seeds) > 1
    over = f"{len(result.seeds)} seeds, the same for all variants" if several else "one seed"
    notes = [
        _tested_on(result),
        f"Each variant is trained from scratch: {result.budget}, {over}"
        + ("; mean ± standard deviation." if several else "."),
        "Rise: by how many points the error is above the whole network's"
        + (", seed by seed: what seeds have in common is no part of its spread." if several else "."),
        *result.notes,
    ]
    return Report("ablation", title="What the layers are worth", items=tuple(items), notes=tuple(notes))


def report_text(report: Report) -> str:
    """Return a report's first table for a terminal, and its notes."""
    table = next(item for item in report.items if isinstance(item, Table))
    return "\n".join([report.heading, "", table_text(table), "", *report.notes])


def percent(values: Tensor, *, sign: bool = False) -> str:
    """Write the mean of values `(seeds,)` from 0 to 1 in percent, with ± the standard deviation if there are several.

    Example:
        >>> percent(torch.tensor([0.5, 0.52])), percent(torch.tensor([0.25]), sign=True)
        ('51.0 ± 1.4', '+25.0')
    """
    mean = f"{100 * float(values.mean()):{'+' if sign else ''}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * _deviation(values):.1f}"


def _deviation(values: Tensor) -> float:
    """The standard deviation over seeds (of a sample: n - 1), NaN for a single one."""
    return float(values.std()) if len(values) > 1 else math.nan


def _tested_on(result: StudyResult) -> str:
    return (
        f"{result.backbone} on {result.data}: {result.classes} classes, tested on {result.test_images:,} images that "
        "the same training has not seen."
    )


# Accuracy against images a class


def _accuracy_curve(result: SampleEfficiency, paper: Mapping[str, Mapping[int, float]]) -> Curve:
    series = []
    for variant in result.variants:
        values = [result.accuracies(variant, count) for count in result.per_class]
        means = [100 * float(value.mean()) for value in values]
        deviations = [100 * _deviation(value) for value in values]
        series.append(_series(_WORDS[variant], result.per_class, means, deviations))
    for name, figures in paper.items():
        series.append(_series(f"{_PAPER}, {name}", tuple(figures), list(figures.values()), [math.nan]))
    counts = tuple(map(float, result.per_class))
    series.append(Series("chance", x=counts, y=(100 / result.classes,) * len(counts), reference=True))
    return Curve(
        "accuracy by images",
        tuple(series),
        x_label="training images a class",
        y_label="mean accuracy of the classes in %",
        caption=f"{result.backbone} on {result.data}, {result.classes} classes, {result.budget} a training",
        x_log=True,
        percent=True,
    )


def _series(name: str, x: Sequence[int], means: list[float], deviations: list[float]) -> Series:
    places = tuple(map(float, x))
    if any(math.isnan(value) for value in deviations):
        return Series(name, x=places, y=tuple(means))
    low = tuple(max(0.0, mean - value) for mean, value in zip(means, deviations, strict=True))
    high = tuple(min(100.0, mean + value) for mean, value in zip(means, deviations, strict=True))
    return Series(name, x=places, y=tuple(means), low=low, high=high)


def _accuracy_table(result: SampleEfficiency, paper: Mapping[str, Mapping[int, float]]) -> Table:
    rows: list[tuple[Number, ...]] = []
    for place, variant in enumerate(result.variants):
        for measure, values in (("mean of classes", result.class_mean), ("top-1", result.top1)):
            cells = [percent(values[place, column]) for column in range(len(result.per_class))]
            rows.append((_WORDS[variant], measure, *cells))
    for name, figures in paper.items():
        cells = [f"{figures[count]:.1f}" if count in figures else NOT_KNOWN for count in result.per_class]
        rows.append((f"{_PAPER}, {name}", "mean of classes", *cells))
    columns = ("network", "accuracy in %", *(f"{count} a class" for count in result.per_class))
    caption = "Test accuracy by training images a class" + (": mean ± std over seeds" if len(result.seeds) > 1 else "")
    return Table("accuracy", columns, tuple(rows), caption=caption)


def _accuracy_numbers(result: SampleEfficiency) -> Table:
    """The same for programs: numbers, 0 to 1, with their standard deviations in columns of their own."""
    rows = tuple(
        (variant, count, *_mean_and_std(result.class_mean[place, column]), *_mean_and_std(result.top1[place, column]))
        for place, variant in enumerate(result.variants)
        for column, count in enumerate(result.per_class)
    )
    columns = ("variant", "images a class", "mean of classes", "std of mean of classes", "top-1", "std of top-1")
    return Table("numbers", columns, rows, caption="Test accuracy, 0 to 1; std over seeds")


def _mean_and_std(values: Tensor) -> tuple[float, float | None]:
    """Of values over seeds; the deviation of a single one is not known."""
    return float(values.mean()), float(values.std()) if len(values) > 1 else None


def _paper_accuracies(result: SampleEfficiency) -> dict[str, dict[int, float]]:
    """The paper's figures for the numbers of images that were tried, if the data is the paper's."""
    name = re.sub(r"[^a-z0-9]", "", result.data.lower())
    for number, (classes, figures) in _CALTECH.items():
        if result.classes in classes and (f"caltech{number}" in name or f"{number}objectcategories" in name):
            tried = {
                row: {count: value for count, value in values.items() if count in result.per_class}
                for row, values in figures.items()
            }
            return {row: values for row, values in tried.items() if values}
    return {}


# What layers are worth


def _ablation_table(result: AblationStudy) -> Table:
    whole = result.variants[0]
    with_paper = any(variant.paper is not None for variant in result.variants)
    columns = ["variant", "parameters", "dropped", "dropped in %", "error in %", "rise in points"]
    columns += ["error, paper", "rise, paper"] if with_paper else []
    rows = []
    for place, variant in enumerate(result.variants):
        dropped = whole.parameters - variant.parameters
        row: list[Number] = [
            *(variant.name, variant.parameters, dropped, f"{100 * dropped / whole.parameters:.1f}"),
            percent(result.error[place]),
            percent(result.rise[place], sign=True) if place else NOT_KNOWN,
        ]
        if with_paper:
            both = place > 0 and variant.paper is not None and whole.paper is not None
            row.append(NOT_KNOWN if variant.paper is None else f"{variant.paper:.1f}")
            row.append(f"{(variant.paper or 0) - (whole.paper or 0):+.1f}" if both else NOT_KNOWN)
        rows.append(tuple(row))
    caption = "Top-1 error on the test images" + (": mean ± std over seeds" if len(result.seeds) > 1 else "")
    source = f"; the paper's figures: {result.source}" if with_paper and result.source else ""
    return Table("variants", tuple(columns), tuple(rows), caption=caption + source)


def _ablation_numbers(result: AblationStudy) -> Table:
    """The same for programs: numbers, 0 to 1, with their standard deviations in columns of their own."""
    rows = tuple(
        (
            variant.name,
            variant.parameters,
            *_mean_and_std(result.error[place]),
            *(_mean_and_std(result.rise[place]) if place else (None, None)),
        )
        for place, variant in enumerate(result.variants)
    )
    columns = ("variant", "parameters", "error", "std of error", "rise", "std of rise")
    return Table("numbers", columns, rows, caption="Top-1 error on the test images, 0 to 1; std over seeds")
