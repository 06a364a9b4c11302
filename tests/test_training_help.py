"""The help of `cnnviz fit`: one page, one a class; what a monitor takes is in it, and in `--print_config`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_cnnviz
from lightning_cnnviz import Monitor
from lightning_cnnviz.cli import main
from lightning_cnnviz.docstrings import argument_texts

MONITORS = [
    name
    for name in lightning_cnnviz.__all__
    if inspect.isclass(kind := getattr(lightning_cnnviz, name))
    and issubclass(kind, Monitor)
    and not inspect.isabstract(kind)
]


def options_of(name: str) -> set[str]:
    return set(inspect.signature(getattr(lightning_cnnviz, name)).parameters)


def test_help_is_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    page = capsys.readouterr().out
    assert 40 < len(page.splitlines()) < 90
    assert max(map(len, page.splitlines())) <= 110
    assert all(f"\n  {name} " in page for name in MONITORS)
    for option in ("backbone", "per_class", "max_epochs", "--print_config", "--help.model", "--ckpt_path"):
        assert option in page


@pytest.mark.parametrize("name", MONITORS)
def test_every_option_of_every_monitor_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--help.{name}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for option in options_of(name):
        (place,) = [at for at, line in enumerate(lines) if line.startswith(f"  {option}: ")]
        assert len(lines[place + 1].split()) >= 2, option
        assert " = " in lines[place]
    assert not [line for line in lines if "options:" in line]
    assert {"name", "sinks", "model"} <= options_of(name)
    assert "options" not in options_of(name)


def test_options_of_a_sample_stand_for_what_they_are() -> None:
    assert {"seed", "batch_fn", "task", "epochs"} <= options_of("OcclusionMonitor")
    parameters = inspect.signature(lightning_cnnviz.OcclusionMonitor).parameters
    assert parameters["seed"].default == 0
    assert parameters["seed"].annotation is int
    assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY


def test_a_monitor_of_ones_own_may_have_options_that_nobody_else_knows() -> None:
    class Mine(lightning_cnnviz.FilterMonitor):
        def __init__(self, extra: int = 1, **options: Any) -> None:
            super().__init__(**options)
            self.extra = extra

    assert list(inspect.signature(Mine).parameters) == ["extra", "options"]
    assert Mine(2, every_n_epochs=3).every_n_epochs == 3


@pytest.mark.parametrize("asked", ["model", "data", "trainer", "Trainer", "PageSink", "EarlyStopping"])
def test_groups_and_other_classes_have_help(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", f"--help.{asked}"]) == 0
    said = capsys.readouterr().out
    assert any(
        f"\n  {option}: " in said for option in ("backbone", "batch_size", "max_epochs", "directory", "patience")
    )


def test_an_unknown_class_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--help.OclusionMonitor"])
    assert "did you mean OcclusionMonitor" in capsys.readouterr().err


def test_what_print_config_shows_can_be_given_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *arguments, "--print_config"])
        return capsys.readouterr().out

    attached = [f"--trainer.callbacks+=lightning_cnnviz.{name}" for name in MONITORS]
    first = printed("--data.data=digits", "--model.backbone=squeezenet1_1", *attached)
    callbacks = yaml.safe_load(first)["trainer"]["callbacks"]
    shown = {entry["class_path"].rpartition(".")[2]: set(entry["init_args"]) for entry in callbacks}
    assert shown == {name: options_of(name) for name in MONITORS}
    (tmp_path / "all.yaml").write_text(first)
    assert printed("--config", str(tmp_path / "all.yaml")) == first


def test_arguments_are_read_from_a_docstring() -> None:
    assert argument_texts(None) == {}
    assert argument_texts(
        "Do it.\n\n    Args:\n        a: One.\n        b: Two:\n            three.\n\n    Raises:\n        X: No."
    ) == {
        "a": "One.",
        "b": "Two: three.",
    }
