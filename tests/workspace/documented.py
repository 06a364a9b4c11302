"""What docs/wandb.md says of keys."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "wandb.md"


def documented_keys(*, studies: bool = False) -> dict[str, str]:
    """Return the keys of a run with every monitor, or of a study's summary run, each with what it is shown as."""
    run, _, study = DOCS.read_text().partition("## A study")
    return dict(re.findall(r"^\| `([^`]+)` \|.*\| ([^|]+) \|$", study if studies else run, flags=re.MULTILINE))
