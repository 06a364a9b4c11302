"""The house's rules: imports point one way, heavy libraries are loaded late, every public package names its names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_cnnviz

PACKAGE = Path(lightning_cnnviz.__file__).parent
OURS = "lightning_cnnviz"

# Who may import whom, by the longest of these paths that a file lies under. A room may always import itself.
_SHARED = {"core.network", "core.data", "core.tracing"}  # what every view of core stands on
ALLOWED = {
    "core": set(),
    "core.network": set(),
    "core.data": {"core.network"},
    "core.tracing": {"core.network"},
    "core.layer_table": _SHARED,
    "core.top_patches": _SHARED,
    "core.comparison": _SHARED,
    "core.deconvnet": _SHARED,
    "core.probing": _SHARED,
    "core.maximization": _SHARED,
    "core.images": {*_SHARED, "core.deconvnet"},  # occlusion shows a projection
    "report": set(),
    "files": set(),
    "": set(),
    "render": {"core", "report"},
    "sinks": {
        "report",
        "files",
        "render.image",
        "render.charts",
        "render.items",
        "render.panel",
        "render.tables",
        "render.how_to_read",
    },
    "sinks.outlet": {"report", "render.views", "record", "sinks"},
    "sync": {"report", "record", "sinks"},
    "render.studies": {"render", "report", "studies.results"},
    "record": {"render", "core", "files", "report", "studies.results", "__version__"},
    "show": {"record", "render", "core", "report", "studies.results"},
    "docstrings": set(),
    "training_help": {"callbacks", "docstrings", "finetune", "sinks"},
    "callbacks": {"docstrings", "render", "record", "sinks.base", "sinks.outlet", "sinks.series", "core", "report"},
    "finetune": {"core", "files", "render", "sinks.base", "sinks.outlet", "report"},
    "studies": {"finetune", "core", "files", "render", "sinks", "report"},
    "studies.results": set(),
    "demo": {"callbacks", "studies", "finetune", "sinks", "report", "core", "render"},
    "explore": {"callbacks", "finetune", "sinks", "report", "core", "render", "record"},
    "view": {"core.network.suggestions", "files", "record", "report", "sinks"},
    "command_options": set(),
    "workspace": {"render.how_to_read"},
    "compare": {"command_options", "core", "explore", "finetune", "record", "render", "report", "sinks"},
    "cli": {
        "__version__",
        "command_options",
        "workspace",
        "sync",
        "demo",
        "explore",
        "compare",
        "view",
        "studies",
        "finetune",
        "record",
        "core",
        "render",
        "sinks",
        "callbacks",
        "report",
        "training_help",
    },
}
# Libraries that only these rooms may name.
ONLY_IN = {
    "wandb": {"sinks/wandb.py", "sinks/_wandb_artifacts.py", "sinks/_wandb_runs.py"},
    "wandb_workspaces": {"workspace/products.py"},
    "lightning": {"callbacks", "finetune", "studies", "demo.py", "explore.py", "training_help.py"},
    "pytorch_lightning": {"callbacks"},
    "matplotlib": {"render", "record/figures.py"},  # there for a type
    "fontTools": {"render/paper/files.py"},
    "jinja2": {"sinks/_page_html.py"},
    "PIL": {"render", "sinks/wandb.py", "finetune/sources.py", "finetune/decoding.py"},
    "joblib": {"studies/jobs.py"},
    "scipy": {"core/comparison/units.py", "core/images/correlation.py"},
    "sklearn": {"demo.py", "finetune/sources.py"},
    "torchvision": {"core/images/transforms.py", "finetune", "demo.py", "render"},
    "pandas": {"record"},
    "safetensors": {"record"},
    "captum": {"core/images/attribution.py"},
}


def room_of(file: str) -> str:
    """The innermost room, of those that have a rule, that a file lies in; "" for the package's own names."""
    if "/" not in file and file.startswith("__init__"):
        return ""
    path = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return max((room for room in ALLOWED if is_in(path, room)), key=len)


def is_in(name: str, room: str) -> bool:
    return bool(room) and (name == room or name.startswith(f"{room}."))


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


def violations(file: str, source: str) -> list[str]:
    room = room_of(file)
    folder = file.rpartition("/")[0].replace("/", ".")
    problems = []
    for name in imports_of(source):
        parts = name.split(".")
        if parts[0] == OURS:
            inner = ".".join(parts[1:])
            private = [place for place, part in enumerate(parts) if part.startswith("_") and not part.endswith("__")]
            # What begins with an underscore is for the files beside it and below.
            hidden = private and not is_in(folder, ".".join(parts[1 : private[0]]))
            if hidden or not (is_in(inner, room) or any(is_in(inner, allowed) for allowed in ALLOWED[room])):
                problems.append(f"{file} imports {name}")
        homes = ONLY_IN.get(parts[0])
        if homes is not None and not any(file == home or file.startswith(f"{home}/") for home in homes):
            problems.append(f"{file} imports {name}")
    return problems


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
STUBS = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.pyi"))


def test_there_are_files_to_check() -> None:
    assert {"core/top_patches/mining.py", "sinks/wandb.py", "callbacks/_base/monitor.py"} <= set(FILES)


def test_every_folder_of_core_has_a_rule() -> None:
    folders = {file.split("/")[1] for file in FILES if file.startswith("core/") and file != "core/__init__.py"}
    assert {f"core.{folder}" for folder in folders} == {room for room in ALLOWED if room.startswith("core.")}


@pytest.mark.parametrize("file", FILES)
def test_imports_point_one_way(file: str) -> None:
    assert violations(file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/network/x.py", "from lightning_cnnviz.render.image import draw_sheet"),
        ("core/network/x.py", "import lightning.pytorch as pl"),
        ("core/network/x.py", "def f():\n    import wandb"),
        ("core/network/x.py", "from lightning_cnnviz.core.tracing.receptive_field import BoundsMode"),
        ("core/tracing/x.py", "from lightning_cnnviz.core.data.batches import read_batch"),
        ("core/deconvnet/x.py", "from lightning_cnnviz.core.top_patches.mining import PatchMiner"),
        ("core/maximization/x.py", "from lightning_cnnviz.core.deconvnet.projection import project"),
        ("core/images/x.py", "from lightning_cnnviz.core.probing.tap import tap_features"),
        ("sinks/page.py", "from lightning_cnnviz.render.top_patches import top_patches_report"),
        ("report.py", "from lightning_cnnviz.core.network.layers import select_layers"),
        ("callbacks/x.py", "from wandb import Image"),
        ("callbacks/x.py", "from lightning_cnnviz.finetune import FineTuner"),
        ("finetune/x.py", "from lightning_cnnviz.callbacks import Monitor"),
        ("render/studies.py", "from lightning_cnnviz.studies.training import Training"),
        ("studies/results.py", "from lightning_cnnviz.studies.jobs import write_json"),
        ("explore.py", "from lightning_cnnviz.callbacks._base.monitor import Monitor"),
    ],
)
def test_the_rule_can_fail(file: str, source: str) -> None:
    assert len(violations(file, source)) == 1


# Where a user asks for a product by its name: commands, and studies that log their runs to it.
APPLICATIONS = ("cli.py", "compare.py", "demo.py", "explore.py", "studies/", "sync.py", "view.py", "workspace/")
PRODUCTS = re.compile("wandb|tensorboard|mlflow", re.IGNORECASE)


def products(file: str, source: str) -> list[str]:
    """What a file says in its code, docstrings aside, of products and of single kinds of sinks outside their files."""
    tree = ast.parse(source)
    places = [place.split(".") for place in stub_names("__init__.pyi") if place.startswith(".sinks.")]
    kinds = {name for _, room, stem, name in places if name != "Sink" and f"{room}/{stem}.py" != file}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    tests = [call for call in calls if names_of(call.func) in (["isinstance"], ["issubclass"])]
    said = [name for call in tests for name in names_of(call)]
    if not file.startswith(APPLICATIONS):
        kinds |= {
            word
            for word in words_of(tree)
            for name in PRODUCTS.findall(word)
            if not file.startswith((f"sinks/{name.lower()}.py", f"sinks/_{name.lower()}_"))
        }
        said += words_of(tree)
    return sorted(kinds & set(said))


def names_of(tree: ast.AST) -> list[str]:
    """Every name that code uses, imports or defines."""
    fields = [
        getattr(node, field, None) for node in ast.walk(tree) for field in ("id", "attr", "arg", "name", "module")
    ]
    return [text for text in fields if isinstance(text, str)]


def words_of(tree: ast.AST) -> list[str]:
    """Every name and every string of code, docstrings aside."""
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in texts]
    return [*names_of(tree), *(node.value for node in constants if isinstance(node.value, str))]


@pytest.mark.parametrize("file", FILES)
def test_products_are_named_in_their_sinks_alone(file: str) -> None:
    assert products(file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "said"),
    [
        ("callbacks/x.py", 'logger.name == "WandbLogger"', "WandbLogger"),
        ("render/x.py", "def for_tensorboard(): ...", "for_tensorboard"),
        ("sinks/mlflow.py", "import wandb", "wandb"),
        ("finetune/x.py", "sinks = [PageSink()]", "PageSink"),
        ("sinks/outlet.py", "sink.write() if isinstance(sink, MemorySink) else None", "MemorySink"),
        ("demo.py", "issubclass(kind, (Sink, PageSink))", "PageSink"),
    ],
)
def test_a_product_elsewhere_is_seen(file: str, source: str, said: str) -> None:
    assert products(file, source) == [said]
    assert products(file, f'def f():\n    "As {said} does it."') == []


@pytest.mark.parametrize("stub", STUBS)
def test_public_names_are_there_and_each_is_named_once(stub: str) -> None:
    package = ".".join([OURS, *stub.split("/")[:-1]])
    module = importlib.import_module(package)
    # The stub is the one list of names: `from .file import name as name`.
    names = [name.rpartition(".")[2] for name in stub_names(stub)]
    assert names
    assert module.__all__ == sorted(names)
    assert len(set(names)) == len(names)
    for place in stub_names(stub):
        home, _, name = place.rpartition(".")
        assert getattr(module, name) is getattr(importlib.import_module(package + home), name)


def stub_names(stub: str) -> list[str]:
    tree = ast.parse((PACKAGE / stub).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    return [f".{node.module}.{alias.name}" for node in imports for alias in node.names]


def test_core_loads_neither_lightning_nor_wandb() -> None:
    code = (
        "import sys, lightning_cnnviz, lightning_cnnviz.core, lightning_cnnviz.report\n"
        "lightning_cnnviz.mine_top_patches, lightning_cnnviz.TopPatches\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'wandb', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute TopPatchMonitor"):
        _ = lightning_cnnviz.TopPatchMonitor
    assert "TopPatchesMonitor" in dir(lightning_cnnviz)


def test_the_package_is_typed_and_brings_its_template() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "sinks" / "page.html.jinja").exists()


def without_a_test(package: Path, tests: Path) -> list[str]:
    """Files of a folder, but for private ones, that have no test file of their own name in the mirrored place."""
    files = [path.relative_to(package) for path in package.rglob("*.py") if not path.name.startswith("_")]
    return sorted(path.as_posix() for path in files if not (tests / path.parent / f"test_{path.name}").exists())


def test_every_file_of_core_has_a_test_of_its_own_name(tmp_path: Path) -> None:
    assert without_a_test(PACKAGE / "core", Path(__file__).parent / "core") == []
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "new.py").touch()
    assert without_a_test(tmp_path, tmp_path) == ["room/new.py"]


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("callbacks/") and file.count("/") == 1])
def test_monitors_say_when_and_not_how(file: str) -> None:
    assert len((PACKAGE / file).read_text().splitlines()) <= 150
