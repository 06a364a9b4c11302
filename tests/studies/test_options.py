from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_cnnviz.studies.ablation import ablation_study
from lightning_cnnviz.studies.digits import digits_transfer
from lightning_cnnviz.studies.options import StudyOptions, sort_options, sort_training_options
from lightning_cnnviz.studies.sample_efficiency import sample_efficiency

STUDIES = [ablation_study, digits_transfer, sample_efficiency]


@pytest.mark.parametrize("study", STUDIES)
def test_options_are_divided_by_their_names(study: Any) -> None:
    options = {"folder": "out", "seeds": [3], "jobs": 2, "batch_size": 8, "lr": 0.1}
    common, rest = sort_options(options, study)
    assert common == StudyOptions(folder="out", seeds=[3], jobs=2)
    assert sort_training_options(rest, study) == ({"val": 0, "batch_size": 8}, {"lr": 0.1})


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize(("wrong", "right"), [("seed", "seeds"), ("batch_sise", "batch_size"), ("foldr", "folder")])
def test_a_wrong_name_is_refused_with_the_closest(study: Any, wrong: str, right: str) -> None:
    with pytest.raises(
        TypeError, match=f"{study.__name__} has no option '{wrong}', nor have .* Did you mean .*'{right}'"
    ):
        sort_options({"folder": "out", wrong: 1}, study)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, r"seeds=\[\]: give one or more"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]"),
        ({"seeds": [-1]}, r"seeds=\[-1\]"),
        ({"epochs": 0}, "epochs=0: give a whole number of at least 1"),
        ({"steps": True}, "steps=True"),
        ({"jobs": 0}, "jobs=0"),
        ({"backend": "spark"}, "backend='spark'"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudyOptions(folder="out", **options)


def test_runs_are_a_group_named_after_the_folder(tmp_path: Path) -> None:
    assert StudyOptions(folder=tmp_path).runs is None
    runs = StudyOptions(folder=tmp_path / "flowers", wandb="project", offline=True).runs
    assert runs is not None
    assert (runs.project, runs.group, runs.offline) == ("project", "flowers", True)
