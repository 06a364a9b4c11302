"""What a network's layers are worth: variants without them, or resized, trained alike (Zeiler & Fergus, 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lightning_cnnviz.render.studies import ablation_report
from lightning_cnnviz.studies.options import sort_options, sort_training_options
from lightning_cnnviz.studies.results import AblationStudy, AblationVariant
from lightning_cnnviz.studies.study import common_fields, finish_study, run_trainings, study_errors
from lightning_cnnviz.studies.training import Training, build, training_job, with_fingerprints

__all__ = ["ablation_study"]

_WHOLE = "the whole network"


def ablation_study(
    data: str | Path,
    backbone: str | nn.Module,
    *,
    remove: Sequence[Sequence[str]] = (),
    resize: Sequence[Mapping[str, int]] = (),
    paper: Mapping[str, Any] | None = None,
    folder: str | Path = "cnnviz_ablation",
    **options: Any,
) -> AblationStudy:
    """Train a network whole, without some of its layers, and with other widths: each from scratch, in the same way.

    Shapes are repaired as `surgery.ablate` does it. Each training is a job (see `run_jobs`) whose result is kept
    in `folder`, as in `sample_efficiency`.

    Args:
        data: As `ImageFolderDataModule` takes it.
        backbone: As `FineTuner` takes it: a name, or a network, which is initialized anew.
        remove: Each entry is a variant: the names of layers that are left out together.
        resize: Each entry is a variant: numbers of outputs by the names of layers.
        paper: Errors in % that a paper printed, to stand beside: `{"source": "...", "whole": 40.5, "remove": [...],
            "resize": [...]}`, one entry a variant in their order, None where the paper has none.
        folder: Where the results and the page go.
        options: Those of `StudyOptions` (`seeds`, `epochs` or `steps`, `jobs`, `wandb` and others), and further options
            of `ImageFolderDataModule` (no images are held out for validation unless `val` says so) and of `FineTuner`.

    Raises:
        StudyError: Something is wrong with the arguments or the data, or the shapes of a variant cannot be repaired;
            before any training.
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    with study_errors():
        study, rest = sort_options({"folder": folder, **options}, ablation_study)
        cuts = _cuts(remove, resize)
        figures = _paper_errors(paper or {}, len(remove), len(resize))
        data_options, tuner_options = sort_training_options(rest, ablation_study)
        (whole,) = with_fingerprints(
            [
                Training(
                    label=_WHOLE,
                    study=study,
                    data=str(data),
                    backbone=backbone,
                    scratch=True,
                    data_options=data_options,
                    tuner_options=tuner_options,
                )
            ]
        )
        trainings = [replace(whole, label=_name(*cut), remove=cut[0], resize=cut[1]) for cut in cuts]
        variants = [_variant(training, figure) for training, figure in zip(trainings, figures, strict=True)]
        jobs = [
            training_job(replace(training, label=f"{training.label}, seed {seed}", seed=seed))
            for training in trainings
            for seed in study.seeds
        ]
    measured = run_trainings(jobs, study, len(variants), len(study.seeds))
    result = AblationStudy(
        variants=tuple(variants),
        error=1 - measured["top1"],
        class_error=1 - measured["class_mean"],
        source=str((paper or {}).get("source", "")),
        **common_fields(data, backbone, study, measured),
    )
    finish_study(result, ablation_report(result), study, jobs)
    return result


def _cuts(
    remove: Sequence[Sequence[str]], resize: Sequence[Mapping[str, int]]
) -> list[tuple[tuple[str, ...], dict[str, int]]]:
    """What is removed and resized in each variant; first the whole network."""
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


def _paper_errors(paper: Mapping[str, Any], removed: int, resized: int) -> list[float | None]:
    """The paper's error in % of each variant."""
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
        raise ValueError(f"paper has {wrong[0]!r} among its figures; give errors in %, and null where there is none")
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


def _variant(training: Training, paper: float | None) -> AblationVariant:
    _, tuner, ablated = build(training)
    changes = () if ablated is None else ablated.changes
    return AblationVariant(
        name=training.label,
        remove=training.remove,
        resize=training.resize,
        parameters=sum(parameter.numel() for parameter in tuner.network.parameters()),
        changes=tuple(f"{change.name} {change.action}: {change.old} → {change.new}" for change in changes),
        paper=paper,
    )
