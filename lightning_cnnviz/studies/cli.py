"""`cnnviz study`: studies from a YAML file and the command line."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_cnnviz.studies.jobs import JobsFailedError

__all__ = ["study_main"]

_ABOUT = {
    "sample-efficiency": (
        "accuracy against images a class: pretrained against from scratch",
        "Train a network on few images a class: pretrained weights with the head alone and end to end, and from "
        "scratch. A study that was interrupted goes on where it was.",
    ),
    "ablation": (
        "what layers are worth: variants without them, or with other widths",
        "Train a network whole, without some of its layers, and with other widths, each from scratch with the same "
        "budget and seeds. A study that was interrupted goes on where it was.",
    ),
    "digits": (
        "digits 0 to 4 help to learn 5 to 9 (about a minute, downloads nothing)",
        "Train a small convnet on scikit-learn's digits 0 to 4, then on 1, 3, 10 and 30 images of each of 5 to 9, "
        "against the same from scratch. Downloads nothing.",
    ),
}


def study_main(arguments: Sequence[str]) -> int:
    """Run `cnnviz study` with its arguments; return the exit status.

    What is wrong before any training is said in one message, with status 2; with status 1, which trainings failed.
    """
    parser, commands = _parser()
    given = vars(parser.parse_args(list(arguments)))
    study: str = given.pop("study")
    command = commands[study]
    file, out = given.pop("file"), given.pop("out")
    options: dict[str, Any] = {} if file is None else _from_yaml(command, file)
    options |= {name: value for name, value in given.items() if value not in (None, False)}
    if out is not None:
        options["folder"] = out
    if options.pop("no_progress", False):
        options["progress"] = False
    make, show = _study(study)
    _check_names(command, make, options)
    folder = Path(options.setdefault("folder", inspect.signature(make).parameters["folder"].default))
    if folder.exists() and not folder.is_dir():
        command.error(f"--out {folder} is a file; give a folder")
    from lightning_cnnviz.render.studies import report_text
    from lightning_cnnviz.studies.options import StudyError

    try:
        report = show(make(**options))
    except StudyError as error:
        print(f"cnnviz study {study}: error: {error}", file=sys.stderr)
        return 2
    except JobsFailedError as error:
        print(f"cnnviz study {study}: {error}", file=sys.stderr)
        return 1
    print(report_text(report))
    page = folder / "index.html"
    if page.is_file():  # what was learned is worth more than its page
        print(f"\nPage, to open in a browser: {page.resolve()}")
    return 0


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="cnnviz study", description="Make many trainings, and one table of them.")
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    commands = {}
    for name, (about, description) in _ABOUT.items():
        command = commands[name] = studies.add_parser(name, help=about, description=description)
        kinds = "any argument of the study, and options of the data and of FineTuner"
        command.add_argument("file", nargs="?", type=Path, metavar="YAML", help=f"{kinds}; the command line overrides")
        if name != "digits":
            command.add_argument("--data", help="a folder, or a data set's name")
            command.add_argument("--backbone", metavar="NAME", help="a torchvision classifier, or timm/NAME")
            command.add_argument("--epochs", type=int, metavar="N", help="of each training")
        if name == "sample-efficiency":
            command.add_argument("--weights", help="of the pretrained variants: DEFAULT, or a file")
        if name != "ablation":
            command.add_argument("--per-class", type=int, nargs="+", metavar="N", help="training images a class")
            command.add_argument(
                "--variants", nargs="+", metavar="NAME", help="pretrained-head pretrained-full scratch"
            )
        command.add_argument("--steps", type=int, metavar="N", help="optimizer steps of each training")
        command.add_argument("--seeds", type=int, nargs="+", metavar="N", help="one training each")
        command.add_argument("--out", metavar="DIR", help="where results and page go; default: cnnviz_<study>")
        command.add_argument("--jobs", type=int, metavar="N", help="number of processes; default: 1")
        command.add_argument("--threads", type=int, metavar="N", help="of each process; default: cores / jobs")
        command.add_argument("--backend", help="processes (default), or a cluster: dask, ray")
        command.add_argument("--scheduler", metavar="ADDRESS", help="of the cluster")
        command.add_argument("--wandb", metavar="PROJECT", help="log each training to Weights & Biases")
        command.add_argument("--offline", action="store_true", help="keep these runs on disk")
        command.add_argument("--no-progress", action="store_true", help="show no bar")
    return parser, commands


def _from_yaml(command: argparse.ArgumentParser, file: Path) -> dict[str, Any]:
    yaml = importlib.import_module("yaml")  # Lightning brings it
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        command.error(f"cannot read {file}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        command.error(f"{file} is no YAML: {' '.join(str(error).split())}")
    if not isinstance(content, Mapping):
        command.error(f"{file} holds {type(content).__name__}; write one argument a line, as `data: photos`")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _study(name: str) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    # Late: they load torch and Lightning, not for --help.
    from lightning_cnnviz.render.studies import ablation_report, sample_efficiency_report
    from lightning_cnnviz.studies.ablation import ablation_study
    from lightning_cnnviz.studies.digits import digits_transfer
    from lightning_cnnviz.studies.sample_efficiency import sample_efficiency

    studies: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
        "sample-efficiency": (sample_efficiency, sample_efficiency_report),
        "ablation": (ablation_study, ablation_report),
        "digits": (digits_transfer, sample_efficiency_report),
    }
    return studies[name]


def _check_names(command: argparse.ArgumentParser, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Name what is missing, and `--out` where it stands in the file; unknown names are the study's own to refuse."""
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD and name not in options:
            command.error(f"{name} is missing: give --{name}, or a line `{name}: ...` in the YAML file")
    if "out" in options:
        command.error("the YAML file has 'out'; there it is called 'folder'")
