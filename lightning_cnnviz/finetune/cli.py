"""`cnnviz fit`, `validate`, `test` and `predict`: FineTuner and ImageFolderDataModule as a LightningCLI."""

from __future__ import annotations

import csv
import inspect
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from torch import Tensor

from lightning_cnnviz.core.data.distributed import to_first
from lightning_cnnviz.files import write_file
from lightning_cnnviz.finetune.checkpoints import read_checkpoint, stored_settings
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.sinks.outlet import log_folder

__all__ = ["FineTuneCLI", "finetune_main"]

log = logging.getLogger("lightning_cnnviz")

_TOP = 5


def finetune_main(arguments: Sequence[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict` with its arguments; return the exit status.

    What is wrong with the arguments, the data or the weights is said in one message, with status 2, as long as no batch
    was trained or evaluated; any other error keeps its traceback.
    """
    progress = _Progress()
    try:
        FineTuneCLI(list(arguments), progress)
    except Exception as error:
        message = None if progress.began else _message(error)
        if message is None:
            raise
        log.debug("set-up failed", exc_info=True)
        print(f"cnnviz {arguments[0]}: error: {message}", file=sys.stderr)
        return 2
    return 0


def _message(error: BaseException) -> str | None:
    """What an error says to the user; None if it is a fault of the code. Parsers wrap errors into others."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return next((str(each) for each in chain if _is_for_users(each)), None)


def _is_for_users(error: BaseException) -> bool:
    if isinstance(error, (FileNotFoundError, MisconfigurationException)):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("lightning_cnnviz.")
    return ours and isinstance(error, (ValueError, ImportError))


class FineTuneCLI(LightningCLI):
    """Settings from YAML files and options: `model` is FineTuner, `data` ImageFolderDataModule.

    The model's number of classes, their names and the size of the images come from the data.
    """

    def __init__(self, arguments: list[str], progress: _Progress) -> None:
        super().__init__(
            FineTuner,
            ImageFolderDataModule,
            save_config_callback=_SaveConfig,
            trainer_defaults={"max_epochs": 10, "callbacks": [progress, _PredictionWriter()]},
            seed_everything_default=0,
            parser_kwargs={"prog": "cnnviz", "description": "Fine-tune a network on images, and look into it."},
            args=arguments,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say what the model has to fit."""
        # All options by name would be seventy lines above each message.
        parser.usage = "cnnviz COMMAND [--config FILE] [--GROUP.OPTION VALUE] ...; cnnviz COMMAND --help says more"
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")
        # As a list: a checkpoint's settings hold no tuples.
        parser.link_arguments("data.image_shape", "model.image_size", compute_fn=list, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; Lightning's own would warn of arguments that are not the process's."""
        self.config = parser.parse_args(args)
        self._take_stored_settings()

    def _parse_ckpt_path(self) -> None:
        """Lightning's own would import what a checkpoint names."""

    def _take_stored_settings(self) -> None:
        """Take a checkpoint's settings, but none that names code: that, the user alone may do."""
        settings = self.config[self.config["subcommand"]]
        file = settings.get("ckpt_path")
        if not file or not Path(file).is_file():
            return
        content, given = read_checkpoint(file), settings["model"]
        stored = content.get("hyper_parameters")
        typed = [name for name, value in stored.items() if given.get(name) == value] if stored else []
        how = "--model.{} ..., with the value that it was trained with"
        taken = stored_settings(content, file, inspect.signature(FineTuner).parameters, typed=typed, how=how)
        self.config = self.parser.parse_object({self.config["subcommand"]: {"model": taken}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Read no weights that a checkpoint is going to replace."""
        settings = self.config[self.config["subcommand"]]
        if settings.get("ckpt_path"):
            settings["model"]["weights"] = None


class _Progress(pl.Callback):
    """Notes whether a batch was worked on: what fails before that is the arguments' fault."""

    def __init__(self) -> None:
        self.began = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.began = True

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.began = self.began or not trainer.sanity_checking

    def on_test_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.began = True

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.began = True


class _SaveConfig(SaveConfigCallback):
    """Writes all settings into the run's own folder, where Lightning's would write into the one above W&B's runs."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write them once."""
        folder = log_folder(trainer)  # asks every rank
        if self.already_saved or not trainer.is_global_zero or not trainer.loggers:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{trainer.state.fn.value}.yaml"
        self.parser.save(self.config, str(folder / name), skip_none=False, overwrite=True, multifile=False)
        for logger in trainer.loggers:
            logger.log_hyperparams({f"data/{option}": value for option, value in vars(self.config.data).items()})
        self.already_saved = True


class _PredictionWriter(BasePredictionWriter):
    """Writes what was predicted of each image to `predictions.csv` in the run's folder."""

    def __init__(self) -> None:
        super().__init__("batch")
        self._rows: dict[int, list[Any]] = {}

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget an earlier run's."""
        self._rows = {}

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the most probable classes, given the logits `(N, classes)`."""
        images = trainer.predict_dataloaders.dataset
        chances, classes = prediction.float().softmax(1).cpu().topk(min(_TOP, prediction.shape[1]))
        for row, index in enumerate(batch_indices or ()):
            file = images.files[index] if images.files else index
            label = images.targets[index]
            pairs = zip(classes[row].tolist(), chances[row].tolist(), strict=True)
            best = [cell for number, chance in pairs for cell in (images.classes[number], f"{chance:.6f}")]
            if not bool(chances[row].isfinite().all()):  # torch takes the first class for the largest of NaN
                best = ["", "nan"] * len(classes[row])
            self._rows[index] = [file, images.classes[label] if label >= 0 else "", *best]

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the rows of all ranks in the order of the images."""
        folder = log_folder(trainer)
        parts = to_first(self._rows)
        if not trainer.is_global_zero:
            return
        rows = {index: row for part in parts if part for index, row in part.items()}
        shown = min(_TOP, len(trainer.predict_dataloaders.dataset.classes))
        others = [name for place in range(2, shown + 1) for name in (f"class_{place}", f"probability_{place}")]
        columns = ["file", "true_class", "predicted_class", "probability", *others]
        path = _write(folder / "predictions.csv", columns, rows)
        print(f"Predictions of {len(rows):,} image{'s' * (len(rows) != 1)}: {path}")


def _write(path: Path, columns: Sequence[str], rows: dict[int, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that is no text is written as what it has instead: one such name is not to cost the others.
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows(rows[index] for index in sorted(rows))
    write_file(path, text.getvalue().encode(errors="backslashreplace"))
    return path
