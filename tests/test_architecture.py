"""The house's rules: imports point one way, heavy libraries are loaded late, every public package names its names."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_cnnviz

PACKAGE = Path(lightning_cnnviz.__file__).parent
OURS = "lightning_cnnviz"

# Who may import whom, by the first part of the path inside the package.
ALLOWED = {
    "core": {"core"},
    "report": {"report"},
    "render": {"render", "core", "report"},
    "sinks": {"sinks", "report", "render.image", "render.charts"},
    "callbacks": {"callbacks", "render", "sinks", "core", "report"},
    "finetune": {"finetune", "core", "render", "sinks", "report"},
    "studies": {"studies", "finetune", "core", "render", "sinks", "report"},
    "demo": {"demo", "callbacks", "studies", "finetune", "sinks", "report", "core", "render"},
    "explore": {"explore", "callbacks", "finetune", "sinks", "report", "core", "render"},
    "cli": {"cli", "demo", "explore", "studies", "finetune", "core", "render", "sinks", "callbacks", "report"},
    "__init__": {"core", "report", "render", "sinks", "callbacks", "finetune", "studies"},
}
# Libraries that only these rooms may name.
ONLY_IN = {
    "wandb": {"sinks/wandb.py"},
    "lightning": {"callbacks", "finetune", "studies", "demo.py", "explore.py"},
    "pytorch_lightning": {"callbacks"},
    "matplotlib": {"render"},
    "jinja2": {"sinks/page.py"},
    "PIL": {"render", "sinks/wandb.py", "finetune/sources.py"},
    "joblib": {"studies/jobs.py"},
    "sklearn": {"demo.py", "finetune/sources.py"},
    "torchvision": {"core/transforms.py", "finetune", "demo.py", "render"},
    "captum": {"core/attribution.py", "core/occlusion.py"},
}


def imports_of(source: str) -> list[str]:
    """Full names of everything that a file imports, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(room: str, file: str, source: str) -> list[str]:
    found = []
    for name in imports_of(source):
        parts = name.split(".")
        if parts[0] == OURS:
            inner = ".".join(parts[1:])
            if not any(inner == allowed or inner.startswith(f"{allowed}.") for allowed in ALLOWED[room]):
                found.append(f"{file} imports {name}")
        homes = ONLY_IN.get(parts[0])
        if homes is not None and not any(file == home or file.startswith(f"{home}/") for home in homes):
            found.append(f"{file} imports {name}")
    return found


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_there_are_files_to_check() -> None:
    assert {"core/mining.py", "sinks/wandb.py", "callbacks/base.py"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_one_way(file: str) -> None:
    room = file.split("/")[0].removesuffix(".py")
    assert violations(room, file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize(
    ("room", "file", "source"),
    [
        ("core", "core/x.py", "from lightning_cnnviz.render.image import draw_sheet"),
        ("core", "core/x.py", "import lightning.pytorch as pl"),
        ("core", "core/x.py", "def f():\n    import wandb"),
        ("sinks", "sinks/page.py", "from lightning_cnnviz.render.top_patches import top_patches_report"),
        ("report", "report.py", "from lightning_cnnviz.core.layers import select_layers"),
        ("callbacks", "callbacks/x.py", "from wandb import Image"),
        ("callbacks", "callbacks/x.py", "from lightning_cnnviz.finetune import FineTuner"),
        ("finetune", "finetune/x.py", "from lightning_cnnviz.callbacks.base import Monitor"),
    ],
)
def test_the_rule_can_fail(room: str, file: str, source: str) -> None:
    assert len(violations(room, file, source)) == 1


PACKAGES = ["", ".callbacks", ".core", ".finetune", ".render", ".sinks", ".studies", ".report"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_listed_sorted_and_there(package: str) -> None:
    module = importlib.import_module(OURS + package)
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_core_loads_neither_lightning_nor_wandb() -> None:
    code = (
        "import sys, lightning_cnnviz, lightning_cnnviz.core, lightning_cnnviz.report\n"
        "lightning_cnnviz.mine_top_patches, lightning_cnnviz.TopPatches\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'wandb', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TopPatchMonitor'"):
        _ = lightning_cnnviz.TopPatchMonitor
    assert "TopPatchesMonitor" in dir(lightning_cnnviz)


def test_the_package_is_typed_and_brings_its_template() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "sinks" / "page.html.jinja").exists()
