"""No message names an argument that the function which was called does not have.

Texts are read in the source, and calls are followed by name: what a public function mentions is in its reach. Names
that a text spells as `argument=` have to be parameters of the function, or the text says whose they are, as in
`project(..., method=...)`, `Protocol(...)` or "a monitor with ...".
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

import lightning_cnnviz
import lightning_cnnviz.callbacks
from lightning_cnnviz.finetune import FineTuner, ImageFolderDataModule
from lightning_cnnviz.studies.options import StudyOptions

ROOT = Path(lightning_cnnviz.__file__).parent
FUNCTIONS = {
    "attribute": "core.images.attribution",
    "channel_correlation": "core.images.correlation",
    "compare_units": "core.comparison.units",
    "layer_table": "core.layer_table.table",
    "maximize": "core.maximization.maximize",
    "measure_invariance": "core.images.invariance",
    "mine_top_patches": "core.top_patches.search",
    "occlude": "core.images.occlusion",
    "probe": "core.probing.probe",
    "probe_layers": "core.probing.probe",
    "project": "core.deconvnet.projection",
    "show": "show",
    "tap_features": "core.probing.tap",
}
# Texts that cannot be met there, and why.
UNREACHED = {
    ("maximize", "layer"): "of the objective, UnitActivation(layer=...)",
    ("MaximizationMonitor", "layer"): "of the objective, UnitActivation(layer=...)",
    ("MaximizationMonitor", "objectives"): "it always makes one at least",
    ("LayerTableMonitor", "epochs"): "it has no schedule",
    ("RenormalizeFilters", "forward_fn"): "it says that it does not call the network",
}
# Of monitors that show no images, or no class scores, and do not read what others do. (Their base class can.)
for _name in ("FilterMonitor", "LayerProbeMonitor", "Monitor"):
    UNREACHED |= {(_name, argument): "it draws no sample" for argument in ("batch_fn", "data", "images")}
    UNREACHED |= {(_name, argument): "it reads no class scores" for argument in ("output_fn", "task")}
# Monitors refuse a network on behalf of those alone that choose layers.
for _name in ("AttributionMonitor", "LayerTableMonitor", "Monitor", "OcclusionMonitor"):
    UNREACHED[_name, "layers"] = "`of_convolutions` is of others"
OF_A_TRAINER = {"callbacks", "strategy"}
# What a study meets in other words: its sinks are its own, its images come from files, its layers from `remove`. The
# last one is how a transform is printed.
ELSEWHERE = ("sinks.", "core.data.batches", "core.network.layers", "finetune.presets._ResizeToCover")
_NAMED = re.compile(r"(?<![\w.'/-])([a-z_]\w*)=(?=[\[\"'<.(0-9A-Zl])")
_WHOSE = re.compile(r"\w+\([^()]*\)|\{\}\((?:monitor|every_n_epochs)=[^()]*\)|monitor with [^.;]*|the monitor [^.;,]*")


@cache
def _texts(place: str) -> tuple[str, ...]:
    """Messages: what is raised, and what is told, formatted or not, without docstrings and markup."""
    node, texts = DEFINED[place], list[str]()
    parts = {id(part) for found in ast.walk(node) if isinstance(found, ast.JoinedStr) for part in found.values}
    for found in ast.walk(node):
        if isinstance(found, ast.JoinedStr):
            texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in found.values))
        elif isinstance(found, ast.Constant) and isinstance(found.value, str) and id(found) not in parts:
            texts.append(found.value)
    return tuple(texts)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _source() -> tuple[dict[str, ast.AST], dict[str, dict[str, str]]]:
    """Functions and classes by their full name, and what each file calls them."""
    defined: dict[str, ast.AST] = {}
    names: dict[str, dict[str, str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
        scope = names.setdefault(module, {})
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_cnnviz."):
                home = str(node.module).removeprefix("lightning_cnnviz.")
                scope.update({alias.asname or alias.name: f"{home}.{alias.name}" for alias in node.names})
        for item in tree.body:
            if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
                scope[item.name] = f"{module}.{item.name}"
                defined[f"{module}.{item.name}"] = item
    return defined, names


DEFINED, NAMES = _source()


@cache
def _calls(place: str) -> frozenset[str]:
    """What of ours a function or class names, but for annotations: who is given an object has not made it."""
    scope, notes = NAMES[place.rpartition(".")[0]], set[int]()
    for node in ast.walk(DEFINED[place]):
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            notes |= {id(part) for part in ast.walk(note)} if isinstance(note, ast.AST) else set()
    named = (
        scope.get(node.id, "")
        for node in ast.walk(DEFINED[place])
        if isinstance(node, ast.Name) and id(node) not in notes
    )
    return frozenset(other for other in named if other in DEFINED)


def _reach(start: str) -> set[str]:
    """Everything of ours that a function names, and what that names in turn."""
    seen, waiting = {start}, [start]
    while waiting:
        fresh = _calls(waiting.pop()) - seen
        seen |= fresh
        waiting += fresh
    return seen


def _strays(function: str, module: str, parameters: set[str]) -> set[tuple[str, str]]:
    told = set()
    for place in _reach(f"{module}.{function}"):
        # Markup; and networks that monitors alone put in place, where they were given forward_fn.
        if place.startswith(("render.", "core.network.calling.")):
            continue
        for text in _texts(place):
            for name in _NAMED.findall(_WHOSE.sub("", text)):
                if name not in parameters and (function, name) not in UNREACHED:
                    told.add((name, f"{place}: {text}"))
    return told


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_no_function_is_told_of_an_argument_that_it_does_not_have() -> None:
    strays = {
        name: _strays(name, home, _parameters(getattr(lightning_cnnviz, name))) for name, home in FUNCTIONS.items()
    }
    assert {name: found for name, found in strays.items() if found} == {}


def test_nor_is_a_study() -> None:
    """Studies take the arguments of FineTuner, of its data and of all studies beside their own."""
    from lightning_cnnviz import studies

    passed_on = set().union(*map(_parameters, (FineTuner, ImageFolderDataModule, StudyOptions)))
    homes = {"ablation_study": "studies.ablation", "sample_efficiency": "studies.sample_efficiency"}
    known = passed_on | {
        "max_epochs",
        "max_steps",
        "weights_only",
        "normalize",
        "root",
        "download",
        "monitor",
        "remove",
    }
    for name, home in homes.items():
        strays = _strays(name, home, _parameters(getattr(studies, name)) | known)
        strays = {one for one in strays if not one[1].startswith(ELSEWHERE)}
        assert strays == set(), name


def test_nor_is_a_monitor() -> None:
    found = {}
    for name in lightning_cnnviz.callbacks.__all__:
        kind = getattr(lightning_cnnviz.callbacks, name)
        if inspect.isclass(kind) and issubclass(kind, pl.Callback):
            home = kind.__module__.removeprefix("lightning_cnnviz.")
            found[name] = _strays(name, home, _parameters(kind) | OF_A_TRAINER)
    assert len(found) >= 13
    assert {name: strays for name, strays in found.items() if strays} == {}


def test_a_stray_argument_would_be_found() -> None:
    parameters = _parameters(lightning_cnnviz.mine_top_patches)
    assert "batch_fn" in parameters
    assert any(
        name == "batch_fn"
        for name, _ in _strays("mine_top_patches", "core.top_patches.search", parameters - {"batch_fn"})
    )
    assert _WHOSE.sub("", "project(..., method='gradient') is it; a monitor with data=<a loader> too").count("=") == 0
