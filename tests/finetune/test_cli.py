"""`cnnviz fit`, `validate`, `test` and `predict`: the example with every monitor, predictions, and what is said."""

from __future__ import annotations

import csv
import inspect
import logging
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sinks.harness import page_text

import lightning_cnnviz
from lightning_cnnviz import Monitor
from lightning_cnnviz.cli import main

# Lightning says so wherever a checkpoint of another run is read.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_squeezenet.yaml"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]
QUIET += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "./logs"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark, a middling and a bright class, ten training and two test images."""
    folder, numbers = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, level in (("dusk", 30), ("fog", 110), ("snow", 200)):
        for part, count in (("train", 4), ("test", 2)):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = numbers.integers(level, level + 40, (66, 72, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.jpg")
    return folder


@pytest.fixture
def small(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a run of a second, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    data = ["--data.data", str(photos), "--data.image_size", "64", "--data.val", "1", "--data.batch_size", "4"]
    return [*QUIET, *data, "--model.backbone", "squeezenet1_1"]


def run_folder() -> Path:
    (folder,) = Path("logs/lightning_logs").iterdir()
    return folder


# The example


def example_monitors() -> list[str]:
    callbacks = yaml.safe_load(EXAMPLE.read_text())["trainer"]["callbacks"]
    return [entry["class_path"] for entry in callbacks if "Monitor" in entry["class_path"]]


def test_the_example_attaches_every_monitor() -> None:
    exported = {
        f"lightning_cnnviz.{name}"
        for name in lightning_cnnviz.__all__
        if inspect.isclass(kind := getattr(lightning_cnnviz, name))
        and issubclass(kind, Monitor)
        and not inspect.isabstract(kind)
    }
    assert set(example_monitors()) == exported
    assert len(exported) >= 11


def test_the_example_runs_with_every_monitor(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--data.image_size", "64", "--data.batch_size", "4", "--data.num_workers", "0"]
    with caplog.at_level(logging.INFO):
        status = main(
            ["fit", "--config", str(EXAMPLE), "--data.data", str(photos), "--model.weights", "null", *sizes, *QUIET]
        )
    assert status == 0
    folder = run_folder()
    page = page_text(folder / "cnnviz" / "index.html")
    assert len([record.message for record in caplog.records if "index.html" in record.message]) == 1
    every = ("layer_table", "filters", "correlation", "activation_maps", "attribution", "invariance", "online_probe")
    for view in (*every, "top_patches", "deconvnet", "layer_probe", "occlusion", "maximization", "confusion"):
        assert f'"{view}"' in page, view
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    settings = yaml.safe_load((folder / "fit.yaml").read_text())
    assert settings["data"]["image_size"] == 64
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(folder / "fit.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == settings
    assert len(list((folder / "checkpoints").glob("*.ckpt"))) == 1
    with (folder / "metrics.csv").open() as file:
        assert any(row.get("val/accuracy") for row in csv.DictReader(file))


# Commands


@pytest.fixture
def trained(small: list[str]) -> tuple[list[str], Path]:
    """The settings, and the checkpoint of a run."""
    assert main(["fit", *small, "--seed_everything", "3", "--model.lr", "0.01"]) == 0
    (checkpoint,) = run_folder().glob("checkpoints/*.ckpt")
    kept = Path("kept.ckpt")
    checkpoint.rename(kept)
    return small, kept


def test_predictions_are_those_of_the_network(trained: tuple[list[str], Path], photos: Path) -> None:
    from lightning_cnnviz.finetune.data import ImageFolderDataModule
    from lightning_cnnviz.finetune.module import FineTuner

    small, checkpoint = trained
    # Weights that are not there are not missed where a checkpoint brings its own.
    assert main(["predict", *small, "--ckpt_path", str(checkpoint), "--model.weights", "not_there.pt"]) == 0
    (path,) = Path("logs").rglob("predictions.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = ImageFolderDataModule(photos, image_size=64, val=1)
    model = FineTuner("squeezenet1_1", 3, image_size=(3, 64, 64))
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    images = data.predict_set
    assert images is not None
    assert [row["file"] for row in rows] == images.files
    with torch.no_grad():
        chances = model.eval()(torch.stack([image for image, _ in (images[n] for n in range(6))])).softmax(1)
    for row, chance, target in zip(rows, chances, images.targets, strict=True):
        assert row["predicted_class"] == data.class_names[int(chance.argmax())]
        assert row["true_class"] == data.class_names[target]
        found = {
            row["predicted_class"]: row["probability"],
            **{row[f"class_{n}"]: row[f"probability_{n}"] for n in (2, 3)},
        }
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            dict(zip(data.class_names, chance.tolist(), strict=True)), abs=2e-4
        )
        assert float(row["probability"]) >= float(row["probability_2"]) >= float(row["probability_3"])


def test_other_files_are_predicted_without_a_true_class(trained: tuple[list[str], Path], photos: Path) -> None:
    small, checkpoint = trained
    where = photos / "train" / "fog"
    assert main(["predict", *small, "--ckpt_path", str(checkpoint), "--data.predict", str(where)]) == 0
    (path,) = Path("logs").rglob("predictions.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(where / f"{index}.jpg") for index in range(4)]
    assert {row["true_class"] for row in rows} == {""}


def test_validate_and_test_measure_a_checkpoint(
    trained: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small, checkpoint = trained
    for command, key in (("validate", "val/accuracy"), ("test", "test/accuracy")):
        capsys.readouterr()
        assert main([command, *small, "--ckpt_path", str(checkpoint)]) == 0
        assert key in capsys.readouterr().out


def test_saved_settings_repeat_the_run(small: list[str]) -> None:
    assert main(["fit", *small, "--seed_everything", "3", "--data.augment", "standard"]) == 0
    first = run_folder()
    weights = [torch.load(path, weights_only=True) for path in first.glob("checkpoints/*.ckpt")]
    assert main(["fit", "--config", str(first / "fit.yaml"), "--trainer.logger.save_dir", "again"]) == 0
    repeated = [torch.load(path, weights_only=True) for path in Path("again").rglob("*.ckpt")]
    assert len(weights) == len(repeated) == 1
    assert weights[0]["state_dict"].keys() == repeated[0]["state_dict"].keys()
    assert all(torch.equal(value, repeated[0]["state_dict"][key]) for key, value in weights[0]["state_dict"].items())


def test_the_data_says_what_the_model_must_fit(small: list[str]) -> None:
    assert main(["fit", *small, "--data.classes", '["snow", "dusk"]', "--data.channels", "3"]) == 0
    settings = yaml.safe_load((run_folder() / "hparams.yaml").read_text())
    assert settings["num_classes"] == 2
    assert settings["class_names"] == ["snow", "dusk"]
    assert list(settings["image_size"]) == [3, 64, 64]
    assert settings["data/batch_size"] == 4


# What is said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.data", "nowhere"], "cnnviz fit: error: data='nowhere': there is no such folder"),
        (["--data.per_class", "100"], "per_class=100: "),
        (["--data.val", "2.5"], "val=2.5: give a fraction"),
        (["--model.weights", "not_there.pt"], "not_there.pt"),
        (["--model.backbone", "squeezenet9"], "squeezenet1_"),
        (["--trainer.callbacks", "TopPatchesMonitor", "--trainer.callbacks.layers", "nolayer"], "matches 'nolayer'"),
        (["--trainer.callbacks", "FilterMonitor", "--trainer.callbacks.every_n_epochs", "0"], "every_n_epochs=0"),
        (["--trainer.callbacks", "OcclusionMonitor", "--trainer.callbacks.size", "500"], "500"),
    ],
)
def test_what_is_wrong_before_training_is_said_in_one_message(
    small: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *small, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "cnnviz fit: error: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "option", [["--data.sead", "3"], ["--data.augment", "much"], ["--trainer.callbacks", "NoMonitor"]]
)
def test_options_that_do_not_exist_are_refused(
    small: list[str], option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", *small, *option])
    assert "error" in capsys.readouterr().err


def test_errors_while_training_and_bugs_keep_their_traceback(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_cnnviz.finetune.data import ImageFolderDataModule
    from lightning_cnnviz.finetune.images import LabeledImages
    from lightning_cnnviz.finetune.module import FineTuner

    def fails(kind: type[Exception]) -> Any:
        def raising(*_: Any, **__: Any) -> None:
            raise kind("stop")

        return raising

    for owner, method, kind in (
        (FineTuner, "training_step", ValueError),
        (FineTuner, "configure_optimizers", KeyError),
        (ImageFolderDataModule, "setup", RuntimeError),
        (LabeledImages, "__len__", ValueError),  # not one of ours: raised by this test
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fails(kind))
            with pytest.raises(kind, match="stop"):
                main(["fit", *small])


def test_a_corrupt_file_that_is_met_while_training_is_no_wrong_argument(
    small: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "photos"
    shutil.copytree(photos, place)
    (place / "test").rename(place / "val")
    for file in (place / "val").rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:300])
    options = [*small, "--data.data", str(place), "--data.val", "null", "--trainer.num_sanity_val_steps", "0"]
    assert main(["fit", *options]) == 2
    assert "error: 6 files cannot be read as images" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot be read as an image"):
        main(["fit", *options, "--data.check", "false"])


# The other commands


def test_help_names_all_commands_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lightning_cnnviz.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n"
        "    print(sorted({'torch', 'lightning', 'jsonargparse', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("demo", "layers", "fit", "validate", "test", "predict", "study"):
        assert f"\n    {command} " in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_without_jsonargparse_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jsonargparse" else find(name, *rest)
    )
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--help"])
    assert 'fit needs jsonargparse, not installed: pip install "lightning_cnnviz[cli]"' in capsys.readouterr().err


def test_study_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    module = types.ModuleType("lightning_cnnviz.studies.cli")
    module.study_main = lambda arguments: given.append(arguments) or 7  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "lightning_cnnviz.studies.cli", module)
    assert main(["study", "ablation", "--jobs", "2"]) == 7
    assert given == [["ablation", "--jobs", "2"]]
