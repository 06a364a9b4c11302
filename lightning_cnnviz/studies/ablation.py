"""What a network's layers are worth: variants without them, or resized, trained alike (Zeiler & Fergus, 4.1)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.render.tables import NOT_KNOWN
from lightning_cnnviz.report import Item, Number, Report, Scalar, Table
from lightning_cnnviz.studies.jobs import Backend, Job, check_backend, run_jobs, write_json
from lightning_cnnviz.studies.summary import show_study, with_spread
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

__all__ = ["AblationStudy", "AblationVariant", "ablation_report", "ablation_study", "load_ablation_study"]

_FILE = "ablation.json"
_WHOLE = "the whole network"


@dataclass(frozen=True)
class AblationVariant:
    """One form of the network.

    Attributes:
        name: What it is called in a report.
        remove: The layers that were left out.
        resize: Layers' new widths.
        parameters: Their number.
        changes: What has become of the layers, in words.
        paper: What a paper printed for it: an error in %.
    """

    name: str
    remove: tuple[str, ...]
    resize: Mapping[str, int]
    parameters: int
    changes: tuple[str, ...]
    paper: float | None = None


@dataclass(frozen=True, eq=False)
class AblationStudy:
    """Test errors of a network's variants; the first is the whole network.

    Attributes:
        data: What the data set is called.
        backbone: What the network is called.
        variants: The variants.
        seeds: The seeds.
        error: Share of the test images that are not recognized, 0 to 1; `(variants, seeds)`.
        class_error: Mean of the classes' errors, 0 to 1; `(variants, seeds)`.
        classes: Number of classes.
        test_images: Number of test images.
        budget: What each training was given, in words.
        source: Where the paper's figures are from.
        notes: What else a reader should know.
    """

    data: str
    backbone: str
    variants: tuple[AblationVariant, ...]
    seeds: tuple[int, ...]
    error: Tensor
    class_error: Tensor
    classes: int
    test_images: int
    budget: str
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.variants), len(self.seeds))
        if self.error.shape != shape or self.class_error.shape != shape:
            raise ValueError(
                f"error {tuple(self.error.shape)} and class_error {tuple(self.class_error.shape)} must be of {shape} "
                "variants and seeds"
            )

    @property
    def rise(self) -> Tensor:
        """How much larger the error is than the whole network's of the same seed; `(variants, seeds)`."""
        return self.error - self.error[:1]


def ablation_study(
    data: str | Path,
    backbone: str | nn.Module,
    *,
    remove: Sequence[Sequence[str]] = (),
    resize: Sequence[Mapping[str, int]] = (),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 20,
    steps: int | None = None,
    paper: Mapping[str, Any] | None = None,
    folder: str | Path = "cnnviz_ablation",
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
) -> AblationStudy:
    """Train a network whole, without some of its layers, and with other widths; each from scratch, with equal means.

    Shapes are repaired as `surgery.ablate` does it. Each training is a job (see `run_jobs`) whose result is kept
    in `folder`, as in `sample_efficiency`.

    Args:
        data: As `ImageFolderDataModule` takes it.
        backbone: As `FineTuner` takes it: a name, or a network, which is initialized anew.
        remove: Each entry is a variant: the names of layers that are left out together.
        resize: Each entry is a variant: numbers of outputs by the names of layers.
        seeds: Each draws fresh weights and another order, and where data is not divided other test images; the same
            for all variants.
        epochs: Passes over the training images.
        steps: Number of optimizer steps instead.
        paper: Errors in % that a paper printed, to stand beside: `{"source": "...", "whole": 40.5, "remove": [...],
            "resize": [...]}`, one entry a variant in their order, None where it is not known.
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
        StudyError: Something is wrong with the arguments or the data, or the shapes of a variant cannot be repaired;
            before any training.
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    folder = Path(folder)
    with planning():
        check_backend(jobs, backend, scheduler, threads)
        check_budget(epochs, steps)
        check_seeds(seeds)
        cuts = _cuts(remove, resize)
        printed = _printed(paper or {}, len(remove), len(resize))
        data_options, tuner_options = sort_options(options, ablation_study)
        runs = None if wandb is None else Runs(wandb, folder.absolute().name, str(folder), offline)
        first = Training(
            label="",
            data=str(data),
            data_identity=data_identity(str(data), data_options),
            backbone=backbone,
            weights=None,
            scratch=True,
            mode="full",
            seed=0,
            epochs=epochs,
            steps=steps,
            data_options=data_options,
            options=tuner_options,
            accelerator=accelerator,
            runs=runs,
        )
        variants = [_variant(first, cut, figure) for cut, figure in zip(cuts, printed, strict=True)]
        described = [_job(first, variant, seed) for variant in variants for seed in seeds]
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

    def errors(name: str) -> Tensor:
        values = [1 - float(result[name]) for result in results]
        return torch.tensor(values, dtype=torch.float64).view(len(variants), len(seeds))

    found = AblationStudy(
        Path(data).name if Path(data).is_dir() else str(data),
        backbone if isinstance(backbone, str) else type(backbone).__name__,
        tuple(variants),
        tuple(seeds),
        errors("top1"),
        errors("class_mean"),
        int(results[0]["classes"]),
        int(results[0]["test_images"]),
        f"{epochs} epochs" if steps is None else f"{steps:,} optimizer steps",
        str((paper or {}).get("source", "")),
        tuple(notes),
    )
    _save(found, folder)
    show_study(ablation_report(found), folder, runs)
    return found


def load_ablation_study(folder: str | Path) -> AblationStudy:
    """Return the result of the study that was last made in a folder.

    Raises:
        FileNotFoundError: There is none.
    """
    values = json.loads((Path(folder) / _FILE).read_text(encoding="utf-8"))
    for name in ("error", "class_error"):
        values[name] = torch.tensor(values[name], dtype=torch.float64)
    values["variants"] = [AblationVariant(**_with_tuples(variant)) for variant in values["variants"]]
    return AblationStudy(**_with_tuples(values))


def ablation_report(found: AblationStudy) -> Report:
    """Put a network's variants into a table: parameters, error and its rise; what a paper printed beside it.

    Scalars are errors, 0 to 1; the table is in percent.
    """
    changes = tuple((variant.name, change) for variant in found.variants for change in variant.changes or ("none",))
    items: list[Item] = [
        _table(found),
        Table("changes", ("variant", "layer"), changes, caption="What was done to the layers"),
    ]
    items += [
        Scalar(variant.name, float(error.mean())) for variant, error in zip(found.variants, found.error, strict=True)
    ]
    several = len(found.seeds) > 1
    over = f"{len(found.seeds)} seeds, the same for all variants" if several else "one seed"
    notes = [
        f"{found.backbone} on {found.data}: {found.classes} classes, tested on {found.test_images:,} images that the "
        "same training has not seen.",
        f"Each variant is trained from scratch: {found.budget}, {over}"
        + ("; mean ± standard deviation." if several else "."),
        "Rise: by how many points the error is above the whole network's"
        + (", seed by seed: what seeds have in common is no part of its spread." if several else "."),
        *found.notes,
    ]
    return Report("ablation", title="What the layers are worth", items=tuple(items), notes=tuple(notes))


def _table(found: AblationStudy) -> Table:
    whole = found.variants[0]
    printed = any(variant.paper is not None for variant in found.variants)
    columns = ["variant", "parameters", "dropped", "dropped in %", "error in %", "rise in points"]
    columns += ["error, paper", "rise, paper"] if printed else []
    rows = []
    for place, variant in enumerate(found.variants):
        dropped = whole.parameters - variant.parameters
        row: list[Number] = [
            *(variant.name, variant.parameters, dropped, f"{100 * dropped / whole.parameters:.1f}"),
            with_spread(found.error[place]),
            with_spread(found.rise[place], sign=True) if place else NOT_KNOWN,
        ]
        if printed:
            figure, of_whole = variant.paper, whole.paper
            row.append(NOT_KNOWN if figure is None else f"{figure:.1f}")
            known = place > 0 and figure is not None and of_whole is not None
            row.append(f"{(figure or 0) - (of_whole or 0):+.1f}" if known else NOT_KNOWN)
        rows.append(tuple(row))
    caption = "Top-1 error on the test images" + (": mean ± std over seeds" if len(found.seeds) > 1 else "")
    source = f"; the paper's figures: {found.source}" if printed and found.source else ""
    return Table("variants", tuple(columns), tuple(rows), caption=caption + source)


# Before any training.


def _cuts(
    remove: Sequence[Sequence[str]], resize: Sequence[Mapping[str, int]]
) -> list[tuple[tuple[str, ...], dict[str, int]]]:
    """The variants: whole, without layers, resized."""
    for names in remove:
        if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"remove={list(remove)!r}: give a list of names for each variant, as [['{names}']]"
                if isinstance(names, str)
                else f"remove has the entry {names!r}; give a list of layers' names for each variant"
            )
    for widths in resize:
        if not isinstance(widths, Mapping) or not widths:
            raise ValueError(f"resize has the entry {widths!r}; give numbers of outputs by layers' names")
    if not remove and not resize:
        raise ValueError("there is nothing to compare: give remove=[[<layers>], ...] or resize=[{<layer>: <width>}]")
    cuts = [((), {}), *((tuple(names), {}) for names in remove), *(((), dict(widths)) for widths in resize)]
    names_of = [_name(*cut) for cut in cuts]
    twice = next((name for name in names_of if names_of.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the variant '{twice}' is given twice")
    return cuts


def _printed(paper: Mapping[str, Any], removed: int, resized: int) -> list[float | None]:
    unknown = set(paper) - {"source", "whole", "remove", "resize"}
    if unknown:
        raise ValueError(f"paper has {sorted(unknown)}; it takes source, whole, remove and resize")
    figures: list[float | None] = [paper.get("whole")]
    for name, count in (("remove", removed), ("resize", resized)):
        given = paper.get(name)
        given = [None] * count if given is None else list(given)
        if len(given) != count:
            raise ValueError(f"paper has {len(given)} figures under {name}, but there are {count} variants of it")
        figures += given
    wrong = [figure for figure in figures if figure is not None and not _is_number(figure)]
    if wrong:
        raise ValueError(f"paper has {wrong[0]!r} among its figures; give errors in %, and null where one is not known")
    return [None if figure is None else float(figure) for figure in figures]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _name(remove: tuple[str, ...], resize: Mapping[str, int]) -> str:
    if remove:
        return f"without {', '.join(remove)}"
    by_width: dict[int, list[str]] = {}
    for name, width in resize.items():
        by_width.setdefault(width, []).append(name)
    return "; ".join(f"{', '.join(names)} of {width}" for width, names in by_width.items()) or _WHOLE


def _variant(first: Training, cut: tuple[tuple[str, ...], dict[str, int]], paper: float | None) -> AblationVariant:
    remove, resize = cut
    _, tuner, ablated = built(replace(first, remove=remove, resize=resize))
    changes = () if ablated is None else ablated.changes
    return AblationVariant(
        _name(remove, resize),
        remove,
        resize,
        sum(parameter.numel() for parameter in tuner.network.parameters()),
        tuple(f"{change.name} {change.action}: {change.old} → {change.new}" for change in changes),
        paper,
    )


def _job(first: Training, variant: AblationVariant, seed: int) -> Job:
    label = f"{variant.name}, seed {seed}"
    return training_job(replace(first, label=label, seed=seed, remove=variant.remove, resize=variant.resize))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """What was read from JSON, as it was written."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _save(found: AblationStudy, folder: Path) -> None:
    values = {**vars(found), "variants": [asdict(variant) for variant in found.variants]}
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
    write_json(folder / _FILE, plain)
