from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies.study_parts import ablation_result, sample_efficiency_result

from lightning_cnnviz.studies.results import AblationStudy, SampleEfficiency, StudyResult, load_study


@pytest.mark.parametrize("result", [ablation_result(), sample_efficiency_result()], ids=lambda result: result.file)
def test_what_was_saved_is_loaded(result: StudyResult, tmp_path: Path) -> None:
    (tmp_path / result.file).write_text(json.dumps(result.to_json()))
    loaded = load_study(type(result), tmp_path)
    assert type(loaded) is type(result)
    for name, value in vars(result).items():
        other = getattr(loaded, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other)
            assert value.dtype == other.dtype
        else:
            assert value == other, name


def test_where_nothing_was_saved_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ablation\.json"):
        load_study(AblationStudy, tmp_path)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"error \(3, 2\) and class_error \(3, 2\) must be of \(3, 1\)"):
        ablation_result(seeds=(0,))
    with pytest.raises(ValueError, match=r"must be of \(2, 2, 3\) variants, numbers of images and seeds"):
        replace(sample_efficiency_result(), per_class=(1, 2))


def test_accuracies_and_rises_are_read_seed_by_seed() -> None:
    result: SampleEfficiency = sample_efficiency_result()
    assert torch.equal(result.accuracies("scratch", 15), result.class_mean[1, 1])
    assert ablation_result().rise[1].tolist() == pytest.approx([0.1, 0.1])
