"""`cnnviz workspace` and `cnnviz report`, without an account."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lightning_cnnviz.cli import main


@pytest.mark.parametrize("command", ["workspace", "report"])
def test_print_needs_neither_an_account_nor_the_library(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main([command, "team/flowers", "--print"]) == 0
    told = capsys.readouterr().out
    assert "top_patches/pictures" in told
    assert ("What it cannot tell" in told) is (command == "report")


@pytest.mark.parametrize("name", ["flowers", "a/b/c", "/b", "a/", " / ", "a/ ", "a b/c?d"])
def test_what_names_no_project_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["workspace", name])
    assert "names no project: give ENTITY/PROJECT" in capsys.readouterr().err


def test_without_the_library_it_says_how_to_have_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["report", "team/flowers"])
    assert 'pip install "lightning_cnnviz[workspaces]"' in capsys.readouterr().err


def test_what_is_saved_is_said_and_what_is_not_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Made:
        url = "https://wandb.ai/team/flowers?nw=x"

        def save(self) -> None:
            if asked[-1] == "refused":
                raise RuntimeError("not logged in")

    def make(entity: str, project: str, sections: Any, *, name: str) -> Made:
        asked.extend((entity, project, name))
        return Made()

    monkeypatch.setattr("lightning_cnnviz.workspace.cli.make_workspace", make)
    assert main(["workspace", "team/flowers", "--name", "mine"]) == 0
    assert asked == ["team", "flowers", "mine"]
    assert "Saved: https://wandb.ai/team/flowers" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["workspace", "team/flowers", "--name", "refused"])
    assert "W&B has not taken it: not logged in" in capsys.readouterr().err
