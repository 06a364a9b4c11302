"""How many images a pretrained network saves: accuracy against images a class (Zeiler & Fergus, Tables 4 to 6)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.render.tables import NOT_KNOWN
from lightning_cnnviz.report import Curve, Item, Number, Report, Scalar, Series, Table
from lightning_cnnviz.studies.jobs import Backend, Job, check_backend, run_jobs, write_json
from lightning_cnnviz.studies.summary import show_study, spread, with_spread
from lightning_cnnviz.studies.training import (
    Runs,
    Training,
    built,
    check_budget,
    check_seeds,
    data_identity,
    planning,
    sort_options,
    training_job,
)

__all__ = [
    "VARIANTS",
    "SampleEfficiency",
    "load_sample_efficiency",
    "sample_efficiency",
    "sample_efficiency_report",
]

VARIANTS = {
    "pretrained-head": "pretrained, head alone",
    "pretrained-full": "pretrained, end to end",
    "scratch": "from scratch",
}
"""What is compared, and what it is called in a report."""

_FILE = "sample_efficiency.json"
# Mean accuracy of the classes in %, by images a class: their pretrained network, and the same from scratch.
_PAPER = "Zeiler & Fergus 2013"
_PAPERS: dict[str, tuple[tuple[int, int], dict[str, dict[int, float]]]] = {
    "Caltech-101": ((101, 102), {"pretrained": {15: 83.8, 30: 86.5}, "from scratch": {15: 22.8, 30: 46.5}}),
    "Caltech-256": (
        (256, 257),
        {
            "pretrained": {15: 65.7, 30: 70.6, 45: 72.7, 60: 74.2},
            "from scratch": {15: 9.0, 30: 22.5, 45: 31.2, 60: 38.8},
        },
    ),
}


@dataclass(frozen=True, eq=False)
class SampleEfficiency:
    """Test accuracies of trainings on few images a class.

    Attributes:
        data: What the data set is called.
        backbone: What the network is called.
        variants: Of `VARIANTS`.
        per_class: Numbers of training images a class.
        seeds: The seeds.
        class_mean: Mean of the classes' accuracies, 0 to 1; `(variants, per_class, seeds)`.
        top1: Share of the test images, 0 to 1; `(variants, per_class, seeds)`.
        steps: Numbers of optimizer steps; `(variants, per_class)`.
        classes: Number of classes.
        test_images: Number of test images.
        budget: What each training was given, in words.
        notes: What else a reader should know.
    """

    data: str
    backbone: str
    variants: tuple[str, ...]
    per_class: tuple[int, ...]
    seeds: tuple[int, ...]
    class_mean: Tensor
    top1: Tensor
    steps: Tensor
    classes: int
    test_images: int
    budget: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.variants), len(self.per_class), len(self.seeds))
        if self.class_mean.shape != shape or self.top1.shape != shape or self.steps.shape != shape[:2]:
            raise ValueError(
                f"class_mean {tuple(self.class_mean.shape)}, top1 {tuple(self.top1.shape)} and steps "
                f"{tuple(self.steps.shape)} must be of {shape} variants, numbers of images and seeds"
            )

    def accuracies(self, variant: str, per_class: int) -> Tensor:
        """Return the mean accuracies of the classes, one for each seed."""
        return self.class_mean[self.variants.index(variant), self.per_class.index(per_class)]


def sample_efficiency(
    data: str | Path,
    backbone: str | nn.Module,
    weights: str | None = "DEFAULT",
    *,
    per_class: Sequence[int] = (15, 30, 45, 60),
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 20,
    steps: int | None = None,
    variant_options: Mapping[str, Mapping[str, Any]] | None = None,
    folder: str | Path = "cnnviz_sample_efficiency",
    jobs: int = 1,
    backend: Backend = "processes",
    scheduler: str | None = None,
    threads: int | None = None,
    accelerator: str = "auto",
    wandb: str | None = None,
    offline: bool = False,
    progress: bool = True,
    notes: Sequence[str] = (),
    **options: Any,
) -> SampleEfficiency:
    """Train a network on few images a class: pretrained against from scratch, the head alone against end to end.

    Each training is a job (see `run_jobs`) whose result is kept in `folder`: a study that was interrupted, or is given
    more seeds, makes only the trainings that are missing. The folder's `index.html` shows table and chart.

    Args:
        data: As `ImageFolderDataModule` takes it: a folder, `"digits"`, or a torchvision data set's name.
        backbone: As `FineTuner` takes it: a name, or a network.
        weights: Of the pretrained variants, as `FineTuner` takes them; for a network of your own None, if it has them.
        per_class: Numbers of training images a class. Those of a seed contain each other.
        variants: Of `"pretrained-head"`, `"pretrained-full"` and `"scratch"`.
        seeds: Each draws other images, fresh weights and another order.
        epochs: Passes over the training images.
        steps: Number of optimizer steps instead: then few images are seen as often, taken together, as many are.
        variant_options: Options of one variant alone, by its name, for example
            `{"pretrained-head": {"cache_features": True, "augment": "none"}}`.
        folder: Where the results and the page go.
        jobs: Number of processes.
        backend: `"processes"`, `"dask"` or `"ray"`. A cluster's workers must find the data where this machine does.
        scheduler: The cluster's address.
        threads: Of torch, in each process; see `run_jobs`.
        accelerator: As Lightning's Trainer takes it.
        wandb: Name of a W&B project to log to: each training a run, all in one group with a summary run.
        offline: Whether these runs stay on disk.
        progress: Whether to show a bar.
        notes: Sentences for the report.
        options: Further options of `ImageFolderDataModule` (no images are held out for validation unless `val` says
            so) and of `FineTuner`.

    Raises:
        StudyError: Something is wrong with the arguments, the data or the weights; before any training.
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    folder = Path(folder)
    with planning():
        check_backend(jobs, backend, scheduler, threads)
        check_budget(epochs, steps)
        check_seeds(seeds)
        _check_variants(variants, variant_options or {}, backbone, weights)
        _check_per_class(per_class)
        runs = None if wandb is None else Runs(wandb, folder.absolute().name, str(folder), offline)
        trainings = [
            _training(
                *(str(data), backbone, weights, variant, many, seed, epochs, steps),
                {**options, **(variant_options or {}).get(variant, {})},
                *(accelerator, runs),
            )
            for variant in variants
            for many in per_class
            for seed in seeds
        ]
        described = _described(trainings)
        for training in trainings:
            # The most images a class: what is wrong with fewer is wrong with these, too.
            if training.seed == seeds[0] and training.data_options["per_class"] == max(per_class):
                built(training)
        if runs is not None:
            folder.mkdir(parents=True, exist_ok=True)
    results = run_jobs(
        described,
        folder,
        jobs=jobs,
        backend=backend,
        scheduler=scheduler,
        threads=threads,
        progress=progress,
        title="trainings",
    )

    def measured(name: str) -> Tensor:
        values = [float(result[name]) for result in results]
        return torch.tensor(values, dtype=torch.float64).view(len(variants), len(per_class), len(seeds))

    found = SampleEfficiency(
        Path(data).name if Path(data).is_dir() else str(data),
        backbone if isinstance(backbone, str) else type(backbone).__name__,
        tuple(variants),
        tuple(per_class),
        tuple(seeds),
        measured("class_mean"),
        measured("top1"),
        measured("steps")[:, :, 0].long(),
        int(results[0]["classes"]),
        int(results[0]["test_images"]),
        f"{epochs} epochs" if steps is None else f"{steps:,} optimizer steps",
        tuple(notes),
    )
    _save(found, folder)
    show_study(sample_efficiency_report(found), folder, runs)
    return found


def load_sample_efficiency(folder: str | Path) -> SampleEfficiency:
    """Return the result of the study that was last made in a folder.

    Raises:
        FileNotFoundError: There is none.
    """
    values = json.loads((Path(folder) / _FILE).read_text(encoding="utf-8"))
    for name in ("class_mean", "top1"):
        values[name] = torch.tensor(values[name], dtype=torch.float64)
    values["steps"] = torch.tensor(values["steps"])
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return SampleEfficiency(**fields)


def sample_efficiency_report(found: SampleEfficiency) -> Report:
    """Draw accuracy against images a class, one line a variant with a band of one standard deviation over seeds.

    The paper's own figures stand beside, where the data is the paper's. Scalars are accuracies, 0 to 1; table and
    chart are in percent.
    """
    items: list[Item] = [_curve(found), _table(found)]
    items += [
        Scalar(f"{variant}/{many}", float(found.accuracies(variant, many).mean()))
        for variant in found.variants
        for many in found.per_class
    ]
    over = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed"
    notes = [
        f"{found.backbone} on {found.data}: {found.classes} classes, tested on {found.test_images:,} images that the "
        "same training has not seen.",
        f"Each training: {found.budget}; {over}, each with images, fresh weights and an order of its own"
        + ("; mean ± standard deviation." if len(found.seeds) > 1 else "."),
        *found.notes,
    ]
    if _paper(found):
        notes.append(f"{_PAPER}: their network and their split, for comparison.")
    return Report("sample_efficiency", title="Accuracy against images a class", items=tuple(items), notes=tuple(notes))


def _curve(found: SampleEfficiency) -> Curve:
    series = []
    for variant in found.variants:
        values = [found.accuracies(variant, many) for many in found.per_class]
        means = [100 * float(value.mean()) for value in values]
        series.append(_series(VARIANTS[variant], found.per_class, means, [100 * spread(value) for value in values]))
    for name, figures in _paper(found).items():
        series.append(_series(f"{_PAPER}, {name}", tuple(figures), list(figures.values()), [math.nan]))
    many = tuple(map(float, found.per_class))
    series.append(Series("chance", x=many, y=(100 / found.classes,) * len(many)))
    return Curve(
        "accuracy by images",
        tuple(series),
        x_label="training images a class",
        y_label="mean accuracy of the classes in %",
        caption=f"{found.backbone} on {found.data}, {found.classes} classes, {found.budget} a training",
    )


def _series(name: str, x: Sequence[int], means: list[float], spreads: list[float]) -> Series:
    places = tuple(map(float, x))
    if any(math.isnan(value) for value in spreads):
        return Series(name, x=places, y=tuple(means))
    low = tuple(max(0.0, mean - value) for mean, value in zip(means, spreads, strict=True))
    high = tuple(min(100.0, mean + value) for mean, value in zip(means, spreads, strict=True))
    return Series(name, x=places, y=tuple(means), low=low, high=high)


def _table(found: SampleEfficiency) -> Table:
    rows: list[tuple[Number, ...]] = []
    for place, variant in enumerate(found.variants):
        for measure, values in (("mean of classes", found.class_mean), ("top-1", found.top1)):
            cells = [with_spread(values[place, at]) for at in range(len(found.per_class))]
            rows.append((VARIANTS[variant], measure, *cells))
    for name, figures in _paper(found).items():
        cells = [f"{figures[many]:.1f}" if many in figures else NOT_KNOWN for many in found.per_class]
        rows.append((f"{_PAPER}, {name}", "mean of classes", *cells))
    columns = ("network", "accuracy in %", *(f"{many} a class" for many in found.per_class))
    caption = "Test accuracy by training images a class" + (": mean ± std over seeds" if len(found.seeds) > 1 else "")
    return Table("accuracy", columns, tuple(rows), caption=caption)


def _paper(found: SampleEfficiency) -> dict[str, dict[int, float]]:
    """The paper's figures for the numbers of images that were tried, if the data is the paper's."""
    name = re.sub(r"[^a-z0-9]", "", found.data.lower())
    for data, (classes, figures) in _PAPERS.items():
        number = data[-3:]
        if found.classes in classes and (f"caltech{number}" in name or f"{number}objectcategories" in name):
            tried = {
                row: {many: value for many, value in values.items() if many in found.per_class}
                for row, values in figures.items()
            }
            return {row: values for row, values in tried.items() if values}
    return {}


# Before any training.


def _training(
    data: str,
    backbone: str | nn.Module,
    weights: str | None,
    variant: str,
    per_class: int,
    seed: int,
    epochs: int,
    steps: int | None,
    options: Mapping[str, Any],
    accelerator: str,
    runs: Runs | None,
) -> Training:
    data_options, tuner_options = sort_options(options, sample_efficiency)
    return Training(
        f"{variant}, {per_class} a class, seed {seed}",
        data,
        {},  # one for all trainings
        backbone,
        weights,
        variant == "scratch",
        "head" if variant == "pretrained-head" else "full",
        seed,
        epochs,
        steps,
        {**data_options, "per_class": per_class},
        tuner_options,
        accelerator=accelerator,
        runs=runs,
    )


def _described(trainings: Sequence[Training]) -> list[Job]:
    """Turn trainings into jobs; what takes time to identify is identified once."""
    first = trainings[0]
    shared = data_identity(first.data, first.data_options)
    return [training_job(replace(training, data_identity=shared)) for training in trainings]


def _check_variants(
    variants: Sequence[str],
    variant_options: Mapping[str, Mapping[str, Any]],
    backbone: str | nn.Module,
    weights: str | None,
) -> None:
    for name in (*variants, *variant_options):
        if name not in VARIANTS:
            raise ValueError(f"variants: there is no {name!r}; give some of {', '.join(map(repr, VARIANTS))}")
    if not variants or len(set(variants)) < len(variants):
        raise ValueError(f"variants={list(variants)}: give one or more, each once")
    idle = [name for name in variant_options if name not in variants]
    if idle:
        raise ValueError(f"variant_options for {idle[0]!r}, which is none of variants={list(variants)}")
    pretrained = [name for name in variants if name != "scratch"]
    if pretrained and weights is None and isinstance(backbone, str):
        raise ValueError(
            f'{pretrained[0]!r} needs weights: give weights="DEFAULT", or weights=<a file>, or variants=["scratch"]'
        )


def _check_per_class(per_class: Sequence[int]) -> None:
    whole = all(isinstance(many, int) and not isinstance(many, bool) and many > 0 for many in per_class)
    if not per_class or not whole or list(per_class) != sorted(set(per_class)):
        raise ValueError(f"per_class={list(per_class)}: give numbers of images from 1, ascending, each once")


def _save(found: SampleEfficiency, folder: Path) -> None:
    values = {**vars(found)}
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
    write_json(folder / _FILE, plain)
