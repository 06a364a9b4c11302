"""The page's scripts, as the page runs them: one after the other in one scope."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from lightning_cnnviz.sinks._page_html import page_html

OXLINT = Path(sysconfig.get_path("scripts"), "oxlint")
RULES = ["no-undef", "no-unused-vars", "eqeqeq", "no-var", "prefer-const", "no-redeclare", "no-eval", "no-console"]
SETTINGS = {
    "env": {"browser": True, "es2024": True},
    "categories": {"correctness": "error"},
    "rules": dict.fromkeys(RULES, "error"),
}


def lint(folder: Path, script: str) -> list[str]:
    """The rules that a script breaks, each with its lines."""
    (folder / "page.js").write_text(script, encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    command = [str(OXLINT), "-c", "settings.json", "-f", "unix", "page.js"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    broken = [line for line in found.stdout.splitlines() if line.startswith("page.js:")]
    assert found.returncode == int(bool(broken)), found.stdout + found.stderr
    return broken


def script_of_the_page() -> str:
    (script,) = re.findall(r"<script>(.*)</script>", page_html("embedded([]);"), re.DOTALL)
    assert script.startswith('"use strict";')  # further on it would mean nothing
    assert len(script) > 40_000
    return script


def test_the_scripts_break_no_rule(tmp_path: Path) -> None:
    assert lint(tmp_path, script_of_the_page()) == []


@pytest.mark.parametrize("rule", ["no-undef", "no-unused-vars", "eqeqeq", "no-eval"])
def test_faults_are_found(tmp_path: Path, rule: str) -> None:
    faults = {
        "no-undef": "bydId('views').focus();",
        "no-unused-vars": "const anUnusedName = 1;",
        "eqeqeq": "if (byId('views') == 1) byId('views').focus();",
        "no-eval": "eval('1');",
    }
    broken = lint(tmp_path, f"{script_of_the_page()}\n{faults[rule]}\n")
    assert len(broken) == 1
    assert rule in broken[0]
