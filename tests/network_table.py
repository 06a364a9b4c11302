"""What every view makes of every network of the matrix, as the page `docs/networks.md`.

    python tests/network_table.py               runs the networks that have no entry yet, cheap ones first
    python tests/network_table.py resnet18      runs these
    python tests/network_table.py --page        writes the page anew from what was found before

What is found is kept in `tests/matrix/outcomes.json`, network by network. A view is in the table as exact only after
its check in `tests/matrix/checks.py` against a computation of its own; `pytest -m slow tests/matrix` runs the same.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PAGE, OUTCOMES = TESTS.parent / "docs" / "networks.md", TESTS / "matrix" / "outcomes.json"
KINDS = {
    "classification": "Classification",
    "segmentation": "Segmentation",
    "detection": "Backbones of detection",
    "video": "Video",
    "transformer": "Transformers, and what has no convolutions but the first",
}

PATCHES = (
    "The one convolution of a vision transformer (and of a mixer) is its patch embedding, which the rows of",
    "`vit_b_32`, `vit_tiny_patch16_224` and `mixer_s32_224` are about where a layer is asked for. It is not what",
    "the network has learned: its blocks compute tokens, which are no feature maps, and nothing here shows them.",
    "Monitors of convolutions (top patches, deconvnet, correlation, activation maps, probes, maximization of units)",
    "step aside, functions that are left to choose refuse it, and both say so, unless the layer is named. So does",
    "Grad-CAM, plain and guided; occlusion then follows the class alone. Of the whole network are the layer table,",
    "saliency, p(class) under occlusion, invariance at the classifier's input, the maximization of classes, and",
    "FineTuner.",
)


def found() -> dict[str, dict[str, Any]]:
    """Return what was found so far, by network: of each view the refusal, empty where it is exact, and passes' time."""
    entries: dict[str, dict[str, Any]] = json.loads(OUTCOMES.read_text("utf-8")) if OUTCOMES.exists() else {}
    return entries


def run(names: list[str]) -> None:
    """Run the checks, and keep what they find; what is wrong is printed, and is no entry."""
    import torch
    from matrix.checks import CHECKS, Subject, outcome
    from matrix.networks import NETWORKS

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    missing = [network.name for network in NETWORKS if network.name not in found()]
    for name in names or missing:
        subject = Subject(next(network for network in NETWORKS if network.name == name))
        views: dict[str, Any] = {}
        for view in CHECKS:
            try:
                refusal, passes = outcome(view, subject)
            except Exception as error:
                print(f"{name}: {view} is wrong: {type(error).__name__}: {error}", flush=True)
                continue
            views[view] = {"refusal": refusal, "passes": round(passes, 1)}
        print(f"{name}: {len(views)} of {len(CHECKS)}", flush=True)
        if len(views) == len(CHECKS):
            OUTCOMES.write_text(json.dumps({**found(), name: views}, indent=1) + "\n", encoding="utf-8")


def page() -> str:
    """Return the page as it should be."""
    from matrix.checks import CHECKS
    from matrix.networks import NETWORKS

    entries = found()
    lines = [
        "# Networks, and what each view makes of them",
        "",
        "A number says that the view is exact on this network, as its test has compared it with a computation of its",
        "own (plain passes with hooks, autograd through the whole network, steps by hand), and how many times the time",
        "of a plain pass over one image the call took. A letter is a refusal, whose reason stands below. Weights are",
        "random, and so are the statistics of BatchNorm; all is in double precision, on images of 32 to 224 pixels: on",
        "small ones what is done once a call weighs most. `gradient`, `deconvnet` and `guided` project three units,",
        "a shallow, a middle and a deep one; occlusion has four positions on two images, and a projection of each.",
        "",
        "The tests make this page: `python tests/network_table.py`.",
    ]
    reasons: dict[str, str] = {}
    for kind, title in KINDS.items():
        own = [network for network in NETWORKS if network.kind == kind and network.name in entries]
        if not own:
            continue
        lines += ["", f"## {title}", "", "| network | " + " | ".join(CHECKS) + " |", "| --- |" + " --- |" * len(CHECKS)]
        for network in own:
            cells = [_cell(entries[network.name][view], reasons) for view in CHECKS]
            also = f" (and {', '.join(network.siblings)})" if network.siblings else ""
            lines.append(f"| `{network.name}`{also} | {' | '.join(cells)} |")
        if kind == "transformer":
            lines += ["", *PATCHES]
    lines += ["", "Networks in parentheses are made of the same kinds of modules and are not run themselves."]
    if reasons:
        lines += ["", "## Refusals", ""]
        lines += [f"- **{letter}**: {' '.join(reason.split())}" for reason, letter in reasons.items()]
    missing = [network.name for network in NETWORKS if network.name not in entries]
    if missing:
        lines += [
            "",
            "## Not in the tables yet",
            "",
            "Not run, or one of the checks differs and it is not known whether by the check:",
            ", ".join(f"`{name}`" for name in missing),
        ]
    return "\n".join(lines) + "\n"


def _cell(entry: dict[str, Any], reasons: dict[str, str]) -> str:
    if not entry["refusal"]:
        return f"{entry['passes']:.0f}"
    return reasons.setdefault(entry["refusal"], _letter(len(reasons)))


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else _letter(number // 26 - 1) + _letter(number % 26)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    if sys.argv[1:] != ["--page"]:
        run(sys.argv[1:])
    PAGE.write_text(page(), encoding="utf-8")
