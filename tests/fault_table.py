"""The faults that tests inject, with their outcomes, as the page `docs/faults.md`: `python tests/fault_table.py`.

A test that injects one says so: `@pytest.mark.fault("numbers", "what goes wrong", "what happens then")`; also as a mark
of one of its parameters. The kinds are the headings below.
"""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "faults.md"
KINDS = {
    "numbers": "Numbers that are not finite",
    "memory": "Memory that runs out",
    "disk": "Disks and folders",
    "services": "Services that are slow or gone",
    "processes": "Processes that fail, hang or are killed",
    "inputs": "Files and images from outside",
    "names": "Names from outside",
    "network": "Networks and trainers that do not suit",
    "stale": "Results of something else",
}

Row = tuple[str, str, str, str]
"""Kind, what goes wrong, what happens, and where that is tested."""


def rows_of(source: str, file: str) -> list[Row]:
    """Return the faults that a file's tests inject, in their order."""
    rows: list[Row] = []

    def visit(node: ast.AST, test: str) -> None:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            test = f"{file}::{node.name}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            kind, wrong, outcome = (ast.literal_eval(each) for each in node.args)
            rows.append((kind, wrong, outcome, test))
        for child in ast.iter_child_nodes(node):
            visit(child, test)

    visit(ast.parse(source), file)
    return rows


def page() -> str:
    """Return the page as it should be.

    Raises:
        ValueError: A test names a kind that there is not.
    """
    files = sorted(TESTS.rglob("test_*.py"))
    rows = [row for path in files for row in rows_of(path.read_text("utf-8"), path.relative_to(TESTS).as_posix())]
    unknown = [f"{test}: {kind!r}" for kind, _, _, test in rows if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds of faults are {[*KINDS]}, not: {', '.join(unknown)}")
    lines = [
        "# What happens when something goes wrong",
        "",
        "Each line is a fault that a test injects, and what the test then sees. The tests make this page:",
        "`python tests/fault_table.py`.",
    ]
    for kind, title in KINDS.items():
        own = [row for row in rows if row[0] == kind]
        if own:
            lines += ["", f"## {title}", "", "| what goes wrong | what happens | tested in |", "| --- | --- | --- |"]
            lines += [f"| {_cell(wrong)} | {_cell(outcome)} | `{test}` |" for _, wrong, outcome, test in own]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
