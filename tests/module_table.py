"""Which views serve which modules of users, as the page `docs/modules.md`: `python tests/module_table.py`."""

from __future__ import annotations

from pathlib import Path

from callbacks.user_cases import CASES, VIEWS, Case

PAGE = Path(__file__).parents[1] / "docs" / "modules.md"


def page() -> str:
    """Return the page as it should be."""
    reasons = list(dict.fromkeys(reason for case in CASES for reason in case.aside.values()))
    lines = [
        "# Your module, our views",
        "",
        "Each line is a LightningModule or a Trainer as users have them, with all monitors attached and no argument",
        "given. Its training ends with the very weights that it has without monitors. A view that suits is shown: ●",
        "where a test compares p, activations, filters and counts with a plain computation, ○ where it only runs. One",
        "that does not suit steps aside and says why (a number stands for the reason). The tests make this page:",
        "`python tests/module_table.py`.",
        "",
        "| your module | " + " | ".join(view.replace("_", " ") for view in VIEWS) + " |",
        "| --- |" + " --- |" * len(VIEWS),
    ]
    lines += [f"| {case.title} | " + " | ".join(_cell(case, view, reasons) for view in VIEWS) + " |" for case in CASES]
    lines += ["", "What a view says that steps aside, in part:", ""]
    lines += [f"{number}. … {reason} …" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _cell(case: Case, view: str, reasons: list[str]) -> str:
    if view in case.aside:
        return str(reasons.index(case.aside[view]) + 1)
    return ("●" if case.checked else "○") if case.shown else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
