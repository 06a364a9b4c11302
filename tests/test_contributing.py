"""The recipes of CONTRIBUTING.md are true: their files are there, and no other names what they add."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lightning_cnnviz

PACKAGE = Path(lightning_cnnviz.__file__).parent
ROOT = PACKAGE.parent
# Offers of views and sinks by name; as the recipes say, a choice.
OFFERS = {"explore.py", "demo.py", "studies/study.py", "callbacks/suitable.py", "sync.py", "view.py", "compare.py"}


def recipe(kind: str) -> list[str]:
    """The files that adding one of a kind touches."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"## Adding a {kind}\n")[2].partition("\n## ")[0]
    return re.findall(r"^- `([^`]+)`: ", section, flags=re.MULTILINE)


def missing(kind: str, name: str) -> list[str]:
    """The files of a recipe that one of a kind has not."""
    return [file for file in recipe(kind) if len([*ROOT.glob(file.replace(f"<{kind}>", name))]) != 1]


def others(kind: str, name: str) -> list[str]:
    """The files of the package that the recipe does not list, and that use what it adds all the same."""
    listed = {path for file in recipe(kind) for path in ROOT.glob(file.replace(f"<{kind}>", name))}
    new = {path for file in recipe(kind) if "<" in file for path in ROOT.glob(file.replace(f"<{kind}>", name))}
    own = [path for path in new if path.is_relative_to(PACKAGE) and path.suffix == ".py"]
    added = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in own}
    added |= {name for path in own for name in public_names(path) if name.endswith(("Monitor", "Sink", "_report"))}
    files = {*PACKAGE.rglob("*.py")} - listed - {PACKAGE / file for file in OFFERS}
    return sorted(path.relative_to(PACKAGE).as_posix() for path in files if added & names_in(path))


def public_names(path: Path) -> list[str]:
    """What a file says is public."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no __all__")


def names_in(path: Path) -> set[str]:
    """Every name that a file's code uses, and every module that it imports from."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [getattr(node, field, None) for node in nodes for field in ("id", "attr", "name", "module")]
    return {name for name in names if isinstance(name, str)}


def stems(folder: str) -> set[str]:
    return {path.stem for path in (PACKAGE / folder).glob("*.py") if not path.stem.startswith("_")}


VIEWS = sorted(stems("callbacks") & stems("render") & {path.stem for path in PACKAGE.glob("core/*/*.py")})
# Of these, each file has its test.
EXAMPLES = [view for view in ("filters", "correlation") if view in VIEWS]
SINKS = sorted(stems("sinks") - {"base", "outlet", "series"})


def test_there_are_recipes_and_examples() -> None:
    assert "lightning_cnnviz/render/<view>.py" in recipe("view")
    assert "lightning_cnnviz/sinks/<sink>.py" in recipe("sink")
    assert EXAMPLES
    assert "memory" in SINKS


@pytest.mark.parametrize("view", EXAMPLES)
def test_a_view_has_the_files_of_its_recipe(view: str) -> None:
    assert missing("view", view) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_used_by_no_other_file(view: str) -> None:
    assert others("view", view) == []


@pytest.mark.parametrize("sink", SINKS)
def test_a_sink_has_the_files_of_its_recipe_and_no_more(sink: str) -> None:
    assert missing("sink", sink) == []
    assert others("sink", sink) == []


def test_the_recipes_can_be_wrong() -> None:
    assert "lightning_cnnviz/render/<view>.py" in missing("view", "shadows")
    assert others("sink", "base") != []
