from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sinks.offline_run import _records, keep_wandb_inside
from studies.study_parts import QUICK, TinyNet, image_folder

from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.studies.options import StudyError
from lightning_cnnviz.studies.results import SampleEfficiency, load_study
from lightning_cnnviz.studies.sample_efficiency import sample_efficiency

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore::FutureWarning:lightning.*")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "photos")


def study(photos: Path, folder: Path, net: Any = None, weights: str | None = None, **options: Any) -> SampleEfficiency:
    small: dict[str, Any] = {"per_class": [2, 4], "seeds": [0], "steps": 2, "folder": folder / "study", **QUICK}
    return sample_efficiency(photos, TinyNet() if net is None else net, weights, **{**small, **options})


# --- trainings ---


def test_a_study_makes_what_is_missing_and_no_more(photos: Path, tmp_path: Path, made: list[str]) -> None:
    first = study(photos, tmp_path)
    assert len(made) == 6
    assert first.class_mean.shape == first.top1.shape == (3, 2, 1)
    assert first.steps.tolist() == [[2, 2]] * 3
    assert (first.classes, first.test_images, first.data) == (3, 12, "photos")
    assert (tmp_path / "study" / "index.html").is_file()
    # The same again: nothing is trained. Another seed: its own trainings alone, and the others' results stay.
    assert torch.equal(study(photos, tmp_path).top1, first.top1)
    assert len(made) == 6
    more = study(photos, tmp_path, seeds=[0, 1], variants=["scratch"])
    assert made[6:] == ["scratch, 2 a class, seed 1", "scratch, 4 a class, seed 1"]
    assert torch.equal(more.class_mean[0, :, :1], first.class_mean[2])
    # A lost file is one training; other data, another network and another budget are others altogether.
    next(path for path in (tmp_path / "study").glob("*.json") if "head, 2 a" in path.read_text()).unlink()
    assert torch.equal(study(photos, tmp_path).top1, first.top1)
    assert made[8:] == ["pretrained-head, 2 a class, seed 0"]
    one = {"variants": ["pretrained-full"], "per_class": [2]}
    study(photos, tmp_path, **one, steps=3)
    study(photos, tmp_path, TinyNet(seed=1), **one)
    study(image_folder(tmp_path / "more", train=7), tmp_path, **one)
    assert len(made) == 12
    # The same images in another place are the same data.
    study(image_folder(tmp_path / "moved" / "elsewhere"), tmp_path, **one)
    assert len(made) == 12


def test_each_accuracy_is_that_of_a_training_by_hand(photos: Path, tmp_path: Path) -> None:
    found = study(
        photos, tmp_path, variants=["pretrained-full"], per_class=[4], seeds=[3], lr=0.02, steps=12, threads=1
    )
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    data = ImageFolderDataModule(
        photos, per_class=4, val=0, seed=3, image_size=16, crop=1.0, augment="none", batch_size=8
    )
    tuner = FineTuner(TinyNet(), 3, lr=0.02, class_names=data.class_names, image_size=(3, 16, 16))
    trainer = pl.Trainer(
        *(),
        max_epochs=6,
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(tuner, datamodule=data)
    tuner.eval()
    assert data.test_set is not None
    with torch.no_grad():
        right = [int(tuner(image[None]).argmax()) == label for image, label in data.test_set]
    assert float(found.top1) == pytest.approx(sum(right) / 12)
    by_class = [sum(right[number * 4 : number * 4 + 4]) / 4 for number in range(3)]
    assert float(found.class_mean) == pytest.approx(sum(by_class) / 3)


def test_from_scratch_the_networks_weights_do_not_matter(photos: Path, tmp_path: Path) -> None:
    one, other = TinyNet(seed=1), TinyNet(seed=2)
    options: dict[str, Any] = {"variants": ["scratch", "pretrained-full"], "per_class": [4], "steps": 6}
    first, second = (study(photos, tmp_path / str(place), net, **options) for place, net in enumerate((one, other)))
    losses = [
        {
            record["label"].split(",")[0]: record["result"]["loss"]
            for path in (tmp_path / str(place) / "study").glob("*.json")
            if "job" in (record := __import__("json").loads(path.read_text()))
        }
        for place in range(2)
    ]
    assert losses[0]["scratch"] == losses[1]["scratch"]
    assert losses[0]["pretrained-full"] != losses[1]["pretrained-full"]
    assert torch.equal(first.top1[0], second.top1[0])


def test_processes_find_the_same_as_one(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"variants": ["pretrained-full", "scratch"], "per_class": [4], "steps": 4}
    alone = study(photos, tmp_path / "one", **options)
    together = study(photos, tmp_path / "two", **options, jobs=2)
    assert torch.equal(alone.top1, together.top1)
    assert torch.equal(alone.class_mean, together.class_mean)


def test_leaves_no_trace(photos: Path, tmp_path: Path) -> None:
    net = TinyNet().train()
    net.features[1].eval()
    saved, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    environment, state, numpy_state = dict(os.environ), torch.get_rng_state(), np.random.get_state()[1].tolist()
    study(photos, tmp_path, net, per_class=[2])
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags
    assert dict(os.environ) == environment
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert {name for name in names if not name.endswith(".json")} == {
        "index.html",
        "looks.js",
        "looks",
        "parts",
        "record",
    }


def test_options_of_one_variant(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"per_class": [4], "variants": ["pretrained-head", "pretrained-full"], "steps": 6}
    plain = study(photos, tmp_path / "plain", **options)
    cached = study(
        photos,
        tmp_path / "cached",
        **options,
        variant_options={"pretrained-head": {"cache_features": True, "lr": 0.001}},
    )
    assert torch.equal(plain.top1, cached.top1)


# --- refusals, before any training ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"per_class": [4, 7]}, r"per_class=7: .* has too few training images of class0 \(6\)"),
        ({"per_class": [4, 2]}, r"per_class=\[4, 2\]: give numbers of images from 1, ascending, each once"),
        ({"per_class": [0]}, r"per_class=\[0\]"),
        ({"seeds": []}, r"seeds=\[\]: give one or more"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]"),
        ({"steps": 0}, "steps=0: give a whole number of at least 1"),
        ({"epochs": 0}, "epochs=0"),
        ({"variants": ["pretrained"]}, "there is no 'pretrained'; give some of 'pretrained-head'"),
        ({"variants": []}, r"variants=\[\]: give one or more"),
        (
            {"variant_options": {"scratch": {"lr": 1.0}}, "variants": ["pretrained-head"]},
            "variant_options for 'scratch'",
        ),
        ({"learning_rate": 1.0}, "has no option 'learning_rate', nor have ImageFolderDataModule and FineTuner"),
        ({"per_clas": [2]}, "Did you mean 'per_class'"),
        ({"backbone": "resnet18"}, "'pretrained-head' needs weights: give weights="),
        ({"backbone": "resnet18", "weights": "nowhere.pt"}, "nowhere.pt"),
        ({"backbone": "resnett18", "variants": ["scratch"]}, "resnet18"),
        ({"jobs": 0}, "jobs=0"),
        ({"optimizer": lambda parameters: None}, "so give a function or a class of a module, or its name"),
    ],
)
def test_refusals(photos: Path, tmp_path: Path, options: dict[str, Any], message: str, made: list[str]) -> None:
    data, backbone = options.pop("data", photos), options.pop("backbone", None)
    state = torch.get_rng_state()
    with pytest.raises(StudyError, match=message):
        study(data, tmp_path, backbone, **options)
    assert made == []
    assert not (tmp_path / "study").exists()
    assert torch.equal(torch.get_rng_state(), state)


# --- Weights & Biases ---


def test_runs_are_one_group_with_a_summary(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_wandb_inside(tmp_path, monkeypatch)
    study(photos, tmp_path, per_class=[2], variants=["scratch"], wandb="flowers", offline=True)
    runs, rows, kept = [], [], set()
    for folder in sorted((tmp_path / "study" / "wandb").glob("offline-run-*")):
        records = _records(folder)
        runs += [record.run for kind, record in records if kind == "run"]
        artifacts = [record.artifact for kind, record in records if kind == "artifact"]
        kept |= {(each.name, entry.path) for each in artifacts for entry in each.manifest.contents}
        rows += [
            item.key or "/".join(item.nested_key)
            for kind, record in records
            if kind == "history"
            for item in record.history.item
        ]
    named = {run.display_name: run for run in runs}
    assert set(named) == {"scratch, 2 a class, seed 0", "study summary"}
    assert {run.run_group for run in runs} == {"study"}
    assert {run.project for run in runs} == {"flowers"}
    assert any(key.startswith("test/sample_efficiency/accuracy") for key in rows)
    assert any(key.startswith("test/sample_efficiency/scratch") for key in rows)
    study_files = {path for name, path in kept if name == "cnnviz-study-study"}
    assert {"sample_efficiency.json", "accuracy.table.json", "numbers.table.json"} <= study_files


def test_the_result_is_kept_in_the_folder(photos: Path, tmp_path: Path) -> None:
    result = study(photos, tmp_path, per_class=[2], variants=["scratch"], notes=["Ours."])
    loaded = load_study(SampleEfficiency, tmp_path / "study")
    assert torch.equal(loaded.top1, result.top1)
    assert (loaded.notes, loaded.budget) == (("Ours.",), "2 optimizer steps")
