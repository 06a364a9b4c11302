"""What docstrings show is run, and what the README prints is what the command prints."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import lightning_cnnviz
from lightning_cnnviz.cli import main

PACKAGE = Path(lightning_cnnviz.__file__).parent
SHOWING = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", SHOWING)
def test_examples_give_what_they_say(name: str) -> None:
    import torch

    module = importlib.import_module(name)
    found = doctest.testmod(module, extraglobs={"torch": torch, "nn": torch.nn})
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples() -> None:
    assert len(SHOWING) > 10


def test_the_readme_prints_the_table_of_alexnet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "alexnet"]) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())
    assert printed in (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
