"""`cnnviz workspace` and `cnnviz report`: what a W&B project shows of its runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from lightning_cnnviz.workspace.products import make_report, make_workspace
from lightning_cnnviz.workspace.sections import chosen_sections, sections_text

__all__ = ["report_main", "workspace_main"]


def workspace_main(arguments: Sequence[str] | None = None) -> int:
    """Save a workspace in a project; return the exit status."""
    about = (
        "Save a workspace in a W&B project that shows its runs in reading order: health, probes by depth, patches "
        "and projections, invariance, occlusion and attribution, maximization, architecture, studies. Each call saves "
        "a new one; nobody's own workspace is changed."
    )
    return _save("workspace", about, "cnnviz", make_workspace, explained=False, arguments=arguments)


def report_main(arguments: Sequence[str] | None = None) -> int:
    """Save a report in a project; return the exit status."""
    about = (
        "Save a report in a W&B project for a team to copy and fill: the panels of `cnnviz workspace`, and of each "
        "view what it shows, how it is made and what it cannot tell."
    )
    return _save("report", about, "What the network learns", make_report, explained=True, arguments=arguments)


def _save(
    command: str,
    about: str,
    name: str,
    make: Callable[..., Any],
    *,
    explained: bool,
    arguments: Sequence[str] | None,
) -> int:
    parser = argparse.ArgumentParser(prog=f"cnnviz {command}", description=about)
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="where the runs are")
    parser.add_argument("--name", default=name, help="default: %(default)s")
    parser.add_argument("--views", nargs="+", metavar="VIEW", help="top_patches, layer_probe, ...; default: all")
    parser.add_argument(
        "--prefix",
        default="",
        help="what stands before the keys: WandbLogger's prefix, or the stage (test); default: nothing",
    )
    parser.add_argument("--print", action="store_true", help="show it here, without an account; nothing is saved")
    options = parser.parse_args(arguments)
    entity, _, project = options.project.strip().partition("/")
    if not re.fullmatch(r"[\w.-]+", entity) or not re.fullmatch(r"[^/\\#?%:\s](?:[^/\\#?%:]*[^/\\#?%:\s])?", project):
        parser.error(f"{options.project!r} names no project: give ENTITY/PROJECT")
    try:
        sections = chosen_sections(options.views, prefix=options.prefix)
        if options.print:
            print(sections_text(sections, explained=explained))
            return 0
        made = make(entity, project, sections, name=options.name)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    try:
        made.save()
    except Exception as error:  # of the service, of many kinds
        parser.exit(1, f"cnnviz {command}: W&B has not taken it: {error}\n--print shows it without an account\n")
    print(f"Saved: {made.url}")
    return 0
