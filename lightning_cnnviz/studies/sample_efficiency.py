"""How many images a pretrained network saves: accuracy against images a class (Zeiler & Fergus, Tables 4 to 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_cnnviz.render.studies import sample_efficiency_report
from lightning_cnnviz.studies.options import StudyOptions, sort_options, sort_training_options
from lightning_cnnviz.studies.results import VARIANTS, SampleEfficiency
from lightning_cnnviz.studies.study import common_fields, finish_study, run_trainings, study_errors
from lightning_cnnviz.studies.training import Training, build, training_job, with_fingerprints

__all__ = ["plan_sample_efficiency", "sample_efficiency"]


def sample_efficiency(
    data: str | Path,
    backbone: str | nn.Module,
    weights: str | None = None,
    *,
    per_class: Sequence[int] = (15, 30, 45, 60),
    variants: Sequence[str] = VARIANTS,
    variant_options: Mapping[str, Mapping[str, Any]] | None = None,
    folder: str | Path = "cnnviz_sample_efficiency",
    **options: Any,
) -> SampleEfficiency:
    """Train a network on few images a class: pretrained against from scratch, the head alone against end to end.

    Each training is a job (see `run_jobs`) whose result is kept in `folder`: a study that was interrupted, or is given
    more seeds, makes only the trainings that are missing. The folder's `index.html` shows table and chart.

    Args:
        data: As `ImageFolderDataModule` takes it: a folder, `"digits"`, or a torchvision data set's name.
        backbone: As `FineTuner` takes it: a name, or a network.
        weights: Of the pretrained variants, as `FineTuner` takes them; for a network of your own None, if it has them.
        per_class: Numbers of training images a class, ascending. With one seed, the fewer are among the more.
        variants: Of `"pretrained-head"`, `"pretrained-full"` and `"scratch"`.
        variant_options: Options of one variant alone, by its name, for example
            `{"pretrained-head": {"cache_features": True, "augment": "none"}}`.
        folder: Where the results and the page go.
        options: Those of `StudyOptions` (`seeds`, `epochs` or `steps`, `jobs`, `wandb` and others), and further options
            of `ImageFolderDataModule` (no images are held out for validation unless `val` says so) and of `FineTuner`.

    Raises:
        StudyError: Something is wrong with the arguments, the data or the weights; before any training.
        JobsFailedError: Trainings have failed; the results of the others are kept.
    """
    with study_errors():
        study, rest = sort_options({"folder": folder, **options}, sample_efficiency)
        trainings = plan_sample_efficiency(
            study, data, backbone, weights, per_class, variants, variant_options or {}, rest
        )
        jobs = [training_job(training) for training in trainings]
    measured = run_trainings(jobs, study, len(variants), len(per_class), len(study.seeds))
    result = SampleEfficiency(
        variants=tuple(variants),
        per_class=tuple(per_class),
        class_mean=measured["class_mean"],
        top1=measured["top1"],
        steps=measured["steps"][:, :, 0].long(),
        **common_fields(data, backbone, study, measured),
    )
    finish_study(result, sample_efficiency_report(result), study, jobs)
    return result


def plan_sample_efficiency(
    study: StudyOptions,
    data: str | Path,
    backbone: str | nn.Module,
    weights: str | None,
    per_class: Sequence[int],
    variants: Sequence[str],
    variant_options: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
) -> list[Training]:
    """Return the trainings by variant, number of images and seed; see `sample_efficiency`.

    Raises:
        ValueError: Something is wrong with the arguments, the data or the weights.
        TypeError: An option has no such name.
    """
    _check_variants(variants, variant_options, backbone, weights)
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in per_class)
    if not per_class or not whole or list(per_class) != sorted(set(per_class)):
        raise ValueError(f"per_class={list(per_class)}: give numbers of images from 1, ascending, each once")
    trainings = []
    for variant in variants:
        own = {**options, **variant_options.get(variant, {})}
        data_options, tuner_options = sort_training_options(own, sample_efficiency)
        trainings += [
            Training(
                label=f"{variant}, {count} a class, seed {seed}",
                study=study,
                data=str(data),
                backbone=backbone,
                weights=weights,
                scratch=variant == "scratch",
                mode="head" if variant == "pretrained-head" else "full",
                seed=seed,
                data_options={**data_options, "per_class": count},
                tuner_options=tuner_options,
            )
            for count in per_class
            for seed in study.seeds
        ]
    for training in trainings:
        # The most images a class: what is wrong with fewer is wrong with these, too.
        if training.seed == study.seeds[0] and training.data_options["per_class"] == per_class[-1]:
            build(training)
    return with_fingerprints(trainings)


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
