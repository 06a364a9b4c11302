from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sinks.harness import listed
from studies.job_tasks import draw
from studies.study_parts import ablation_result

from lightning_cnnviz.record.data import load, save
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Report, Scalar
from lightning_cnnviz.studies.jobs import Job
from lightning_cnnviz.studies.options import StudyError, StudyOptions
from lightning_cnnviz.studies.results import AblationStudy, load_study
from lightning_cnnviz.studies.study import common_fields, finish_study, run_trainings, study_errors


def test_a_study_is_not_lost_with_its_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "index.html").mkdir()  # where the page would be
    report = Report("ablation", title="Ablation", items=())
    finish_study(ablation_result(), report, StudyOptions(folder=tmp_path))
    assert [record.message for record in caplog.records if "PageSink cannot write to" in record.message]
    assert load_study(AblationStudy, tmp_path).budget == "2 steps"


def test_a_study_is_kept_in_a_record_and_shown_once(tmp_path: Path) -> None:
    result, other = ablation_result(), replace(ablation_result(), budget="3 steps")
    report = Report("ablation", title="Ablation", items=(Scalar("accuracy", 0.5),))
    for each in (result, result, other):
        finish_study(each, report, StudyOptions(folder=tmp_path))
    found = Record(tmp_path / "record").looks(view="ablation")
    assert [item.value for item in found[0].report().items if isinstance(item, Scalar)] == [0.5]
    assert len({look.identity.run for look in found}) == 2
    ((first, other),) = (series.keys() for series in listed(tmp_path).values())  # two, of one look each, not three
    assert [first[0], other[0]] == ["test", "test"]
    again = load(save(result, tmp_path / "result"))
    assert again.to_json() == result.to_json()


@pytest.mark.fault(
    "stale",
    "two different studies are made in one folder",
    "each keeps a summary of its own, and `load_study` chooses by key",
)
def test_two_studies_in_one_folder_keep_two_summaries(tmp_path: Path) -> None:
    study, report = StudyOptions(folder=tmp_path), Report("ablation", title="Ablation", items=())

    def jobs(lr: float, seeds: int) -> list[Job]:
        return [Job("one", draw, {"options": {"lr": lr}, "seed": seed}) for seed in range(seeds)]

    one, other = ablation_result(), replace(ablation_result(), notes=("another rate",))
    finish_study(one, report, study, jobs(0.1, 1))
    finish_study(other, report, study, jobs(0.2, 1))
    kept = sorted(tmp_path.glob("ablation-*.json"))
    assert sorted(json.loads(file.read_text())["notes"] for file in kept) == [[], ["another rate"]]
    assert load_study(AblationStudy, tmp_path).notes == ("another rate",)
    keys = [file.stem.removeprefix("ablation-") for file in kept]
    assert {load_study(AblationStudy, tmp_path, key=key).notes for key in keys} == {(), ("another rate",)}
    with pytest.raises(ValueError, match=rf"key='x': .* It has {keys[0]}: .*2 steps.*; {keys[1]}: "):
        load_study(AblationStudy, tmp_path, key="x")
    finish_study(one, report, study, jobs(0.1, 3))  # with more seeds it is still the same study
    assert sorted(tmp_path.glob("ablation-*.json")) == kept


def test_what_was_measured_has_the_shape_of_the_plan(tmp_path: Path) -> None:
    jobs = [Job(str(seed), draw, {"seed": seed}) for seed in range(6)]
    study = StudyOptions(folder=tmp_path, progress=False, threads=1)
    measured = run_trainings(jobs, study, 2, 3)
    alone = run_trainings(jobs[4:5], study, 1)
    assert measured["value"].shape == (2, 3)
    assert measured["value"].dtype == torch.float64
    assert measured["value"][1, 1] == alone["value"][0]


@pytest.mark.parametrize("kind", [ValueError, TypeError, OSError, ImportError])
def test_what_is_wrong_before_training_is_one_kind_of_error(kind: type[Exception]) -> None:
    state = torch.get_rng_state()

    def fail() -> None:
        torch.rand(1)
        raise kind("the reason")

    with pytest.raises(StudyError, match="the reason"), study_errors():
        fail()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bug_keeps_its_own_kind() -> None:
    with pytest.raises(KeyError, match="x"), study_errors():
        raise KeyError("x")


def test_a_folder_is_called_by_its_name(tmp_path: Path) -> None:
    counts = {name: torch.full((2, 2), 3.0) for name in ("classes", "test_images")}
    fields = common_fields(tmp_path / "photos", torch.nn.ReLU(), StudyOptions(folder="out", seeds=[4]), counts)
    assert fields["data"] == str(tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    fields = common_fields(tmp_path / "photos", torch.nn.ReLU(), StudyOptions(folder="out", seeds=[4]), counts)
    assert (fields["data"], fields["backbone"], fields["seeds"]) == ("photos", "ReLU", (4,))
    assert (fields["classes"], fields["test_images"], fields["budget"]) == (3, 3, "20 epochs")
