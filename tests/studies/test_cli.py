from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sinks.harness import page_text
from studies.study_parts import image_folder

from lightning_cnnviz.studies import cli as cli_module
from lightning_cnnviz.studies import jobs as jobs_module
from lightning_cnnviz.studies.ablation import ablation_study
from lightning_cnnviz.studies.cli import study_main
from lightning_cnnviz.studies.options import sort_options, sort_training_options
from lightning_cnnviz.studies.sample_efficiency import sample_efficiency

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore::FutureWarning:lightning.*")
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = """
image_size: 32
augment: none
steps: 1
seeds: [0]
accelerator: cpu
threads: 1
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "photos", train=3, test=2, side=32)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = study_main([str(argument) for argument in arguments])
    except SystemExit as done:  # argparse
        status = int(done.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_sample_efficiency(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"{SMALL}data: {photos}\nbackbone: squeezenet1_1\nper-class: [1, 2]\nvariants: [scratch]\n")
    # The command line overrides the file.
    status, out, _ = call(
        capsys, "sample-efficiency", file, "--per-class", 1, "--out", tmp_path / "out", "--no-progress"
    )
    assert status == 0
    assert re.search(r"network +accuracy in % +1 a class\n", out)
    assert re.search(r"from scratch +mean of classes +\d+\.\d\n", out)
    page = Path(out.strip().splitlines()[-1].partition(": ")[2])
    assert page == (tmp_path / "out" / "index.html").resolve()
    assert "Accuracy against images a class" in page_text(page)


def test_ablation(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"{SMALL}remove: [[features.3]]\npaper: {{whole: 40.5, remove: [41.5]}}\n")
    arguments = ["ablation", file, "--data", photos, "--backbone", "squeezenet1_1", "--no-progress"]
    status, out, _ = call(capsys, *arguments, "--out", tmp_path / "out")
    assert status == 0
    assert re.search(r"without features.3 +[\d,]+ +[\d,]+ +\d\.\d +\d+\.\d +[+-]\d+\.\d +41.5 +\+1.0\n", out)


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("pretraining_steps: 2\n")
    arguments = ["digits", file, "--per-class", 1, "--seeds", 0, "--steps", 1, "--out", tmp_path / "out"]
    status, out, _ = call(capsys, *arguments, "--variants", "scratch", "pretrained-head", "--no-progress")
    assert status == 0
    assert "DigitsNet on digits: 5 classes" in out


@pytest.mark.parametrize(
    ("study", "text", "arguments", "message"),
    [
        ("ablation", "remove: [[features.3]]", ["--data", "nowhere"], "nowhere"),
        ("ablation", "remove: [[features.33]]", [], "no layer of SqueezeNet matches 'features.33'. Did you mean"),
        ("ablation", "resize: [{features.3.squeeze: 0}]", [], "'features.3.squeeze' cannot have 0 outputs"),
        ("ablation", "remove: [[features.3]]\nbogus: 1", [], "has no option 'bogus'"),
        ("ablation", "remove: [[features.3]]", ["--backend", "spark"], "backend='spark': give"),
        ("ablation", "[1, 2]", [], "holds list; write one argument a line"),
        ("ablation", "a: [1", [], "is no YAML"),
        ("ablation", "out: here\nremove: [[x]]", [], "the YAML file has 'out'; there it is called 'folder'"),
        ("sample-efficiency", "per_class: [9]\nvariants: [scratch]", [], "has too few training images of class0"),
        ("sample-efficiency", "variants: [scratch]", ["--epochs", "x"], "invalid int value"),
    ],
)
def test_what_is_wrong_is_said_before_training(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    study: str,
    text: str,
    arguments: list[str],
    message: str,
) -> None:
    file = tmp_path / "study.yaml"
    inner = text if text.startswith(("[", "a:")) else f"{SMALL}{text}\n"
    file.write_text(inner)
    given = [study, file, "--backbone", "squeezenet1_1", "--out", tmp_path / "out"]
    given += [] if "--data" in arguments else ["--data", photos]
    status, out, err = call(capsys, *given, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_residual_shapes_and_missing_arguments(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"{SMALL}resize: [{{layer1.0.conv2: 3}}]\n")
    status, _, err = call(capsys, "ablation", file, "--data", photos, "--backbone", "resnet18")
    assert status == 2
    assert "BasicBlock 'layer1.0' cannot be repaired: the sum of (1, 3, 8, 8) and (1, 64, 8, 8)" in err
    for arguments, message in (
        (["ablation", "--data", photos], "backbone is missing: give --backbone, or a line `backbone: ...`"),
        (["ablation", tmp_path / "none.yaml"], "cannot read"),
        (["digits", "--out", file], "is a file; give a folder"),
        (["nothing"], "invalid choice"),
    ):
        status, _, err = call(capsys, *arguments)
        assert status == 2
        assert message in err


def test_failed_trainings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise jobs_module.JobsFailedError("1 of 2 jobs failed ('x')", {"x": "..."})

    def folder(folder: str = "x") -> None:
        raise AssertionError

    fail.__signature__ = inspect.signature(folder)  # type: ignore[attr-defined]
    monkeypatch.setattr(cli_module, "_study", lambda _name: (fail, None))
    status, out, err = call(capsys, "digits", "--out", tmp_path / "out")
    assert (status, out) == (1, "")
    assert "cnnviz study digits: 1 of 2 jobs failed ('x')" in err


@pytest.mark.parametrize(
    ("name", "study"), [("ablation_table3", ablation_study), ("sample_efficiency", sample_efficiency)]
)
def test_examples_name_arguments_that_there_are(name: str, study: Any) -> None:
    options = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    own = set(inspect.signature(study).parameters)
    sort_options({"folder": "out", **{key: value for key, value in options.items() if key not in own}}, study)
    for given in options.get("variant_options", {}).values():
        data, tuner = sort_training_options(given, study)
        assert {**data, **tuner}.items() >= given.items()
