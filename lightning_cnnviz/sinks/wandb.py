"""Reports to Weights & Biases, through the trainer's own WandbLoggers; the only room that knows wandb."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from lightning_cnnviz.report import Number, Report, Step
from lightning_cnnviz.sinks._dashboard import (
    ByDepth,
    Cells,
    Encoded,
    File,
    Lines,
    Value,
    encode_report,
    short_key,
)
from lightning_cnnviz.sinks._depth_lines import DepthLines
from lightning_cnnviz.sinks._handover import Handover
from lightning_cnnviz.sinks._page_html import newest_looks_page
from lightning_cnnviz.sinks._wandb_artifacts import LONGEST_NAME, upload_files, upload_record, upload_split
from lightning_cnnviz.sinks._wandb_runs import how_to_send_later, name_of, opened_run, service_of, wait_for
from lightning_cnnviz.sinks.base import Sink
from lightning_cnnviz.sinks.series import key_part

__all__ = ["WandbSink", "opened_run", "upload_files"]

log = logging.getLogger("lightning_cnnviz")

_ACCOUNT = "sent-to-wandb.jsonl"
_AXIS = "cnnviz/epoch"
_LEGEND = "cnnviz/legend"
_PAGE = "cnnviz/page"
_MARK = 32  # letters that some versions put behind an artifact's name


class WandbSink(Sink):
    """Logs every look to the runs of the trainer's WandbLoggers, of `lightning` or of `pytorch_lightning`.

    All views of one moment are one row, under the epoch and step of Lightning's own numbers of that moment, with
    `cnnviz/epoch` as the axis of every key. There are about 58 keys, however many layers the network has: pictures of
    eight layers, a table of all, lines over depth, and totals to follow; `cnnviz/legend` says what each shows. What
    monitors were made with is in the run's config under `cnnviz/<monitor>`.

    Training does not wait for a W&B service that is slow or hangs. What was sent is noted in the record, where one is
    kept, and `cnnviz sync` sends the rest later.

    Args:
        record: When the record is uploaded as an artifact: `"end"` of each fit, validation or test, or `"never"`. A new
            version has the epoch as its alias, and W&B uploads of it only what it does not have yet.
        page_megabytes: Up to this size the page of the newest looks is uploaded, too, at the same moments; 0 for never.
            The run's config says where the page lies, and whether it was too large.

    Raises:
        ValueError: `record` is none of these, or `page_megabytes` is negative.

    Example:
        >>> from pathlib import Path
        >>> WandbSink().open([], Path("logs"))
        Traceback (most recent call last):
        ValueError: WandbSink found no WandbLogger among the trainer's loggers (none): add one with \
Trainer(logger=WandbLogger(project=...)), or write elsewhere, for example with sinks=[PageSink()]
    """

    is_default: ClassVar[bool] = True
    logger_kinds: ClassVar[tuple[str, ...]] = ("WandbLogger",)
    joins_looks: ClassVar[bool] = True

    def __init__(self, *, record: Literal["end", "never"] = "end", page_megabytes: float = 10) -> None:
        if record not in ("end", "never"):
            raise ValueError(f'record={record!r}: give "end" or "never"')
        if not page_megabytes >= 0:
            raise ValueError(f"page_megabytes={page_megabytes}: give a size in megabytes, or 0 for no page")
        self.record, self.page_megabytes = record, page_megabytes
        self._loggers: list[Any] | None = None
        self._handover = Handover("W&B")
        self._account: Path | None = None
        self._newest: Step | None = None
        self._lines = DepthLines()
        self._legend: dict[str, str] = {}
        self._static: dict[tuple[str, ...], Encoded] = {}
        self._known: dict[str, set[str]] = {}

    @classmethod
    def serves(cls, loggers: Sequence[Any]) -> bool:
        """Say whether there is a WandbLogger."""
        return any(_is_a(logger, "WandbLogger") for logger in loggers)

    def open(self, loggers: Sequence[Any], folder: Path) -> None:
        """Find the trainer's WandbLoggers.

        Raises:
            ValueError: There is none. The DummyLogger of `fast_dev_run` is excused: it stands for any logger.
        """
        if not self.serves(loggers) and not any(_is_a(logger, "DummyLogger") for logger in loggers):
            found = ", ".join(type(logger).__name__ for logger in loggers) or "none"
            raise ValueError(
                f"WandbSink found no WandbLogger among the trainer's loggers ({found}): add one with "
                "Trainer(logger=WandbLogger(project=...)), or write elsewhere, for example with sinks=[PageSink()]"
            )
        self._loggers = [logger for logger in loggers if _is_a(logger, "WandbLogger")]

    @property
    def remedy(self) -> str:
        """Send them from the record."""
        return "" if self._account is None else how_to_send_later(self._runs(), self._account.parent)

    def keep_account(self, folder: Path) -> None:
        """Note in a record's folder what is drawn and sent, and go on with what is noted there."""
        self._account = folder / _ACCOUNT
        self._lines.keep_in(folder)

    def be_patient(self) -> None:
        """Wait for the service from now on, however long it takes: no training is held up."""
        self._handover.is_patient = True

    def has_sent(self, content: Any, step: Step) -> bool:
        """Whether it is noted that a report has been sent to all runs."""
        noted: set[tuple[str, str]] = set()
        if self._account is not None:
            with suppress(OSError):
                for line in self._account.read_text(encoding="utf-8").splitlines():
                    with suppress(ValueError, TypeError, KeyError):  # half a line of a process that was killed
                        entry = json.loads(line)
                        noted.add((entry["to"], entry["report"]))
        return all((name_of(run), _mark(content, step)) in noted for run in self._runs())

    def describe(self, monitor: str, facts: Mapping[str, Any]) -> None:
        """Put what a monitor was made with into the config of each run."""
        for run in self._runs():
            update = getattr(getattr(run, "config", None), "update", None)
            if update is not None:
                entry = {f"cnnviz/{key_part(monitor)}": dict(facts)}
                self._hand_over(run, partial(update, entry, allow_val_change=True))

    def keep_split(self, name: str, split: Mapping[str, Any]) -> None:
        """Upload which images do what, as an artifact of its own: runs with the same split have the same version."""
        for run in self._runs():
            self._hand_over(run, partial(upload_split, run, name, dict(split)))

    def write(self, report: Report, step: Step) -> None:
        """Log one report as a row of each run.

        Raises:
            RuntimeError: `open` has not been called.
        """
        self.write_encoded(self.encode(report, step), step)

    @staticmethod
    def encode(report: Report, step: Step) -> Any:
        """Draw and encode the items."""
        return encode_report(report, step)

    def write_encoded(self, content: Any, step: Step) -> None:
        """Log what has been drawn of one report as a row of each run."""
        self.write_look([content], step)

    def write_look(self, contents: Sequence[Any], step: Step) -> None:
        """Log all that has been drawn of one moment as one row of each run, as long as the service answers.

        Raises:
            OSError: The service does not answer, and too much waits for it already.
            RuntimeError: `open` has not been called.
        """
        marks = [_mark(content, step) for content in contents]
        fresh_contents = self._without_known(contents, step)
        every = {key: item for content in fresh_contents for key, item in content.items.items()}
        every |= self._lines.add({key: item for key, item in every.items() if isinstance(item, ByDepth)}, step)
        self._legend |= {key: text for content in fresh_contents for key, text in content.legend.items()}
        for run, own in self._runs().items():
            if not every:
                self._note(run, marks)
                continue
            prefix = f"{key_part(own)}/" if own else ""
            items = {
                _table_key(run, key, prefix) if isinstance(item, Cells | Lines) else key: item
                for key, item in every.items()
            }
            # Made anew for each run: a media object belongs to the first one that it is logged to. And made here: the
            # first ones take seconds to load what they need, which is no fault of the service.
            static = {f"{prefix}{key}": item.value for key, item in items.items() if _is_static(item)}
            media = {f"{prefix}{key}": _media(item) for key, item in items.items() if not _is_static(item)}
            summaries = {f"{prefix}{key}": item.summary for key, item in items.items() if isinstance(item, Value)}
            known = self._known.setdefault(name_of(run), set())
            if not media.keys() <= known:
                media[f"{prefix}{_table_key(run, _LEGEND, prefix)}"] = _table(
                    ("key", "what it shows"), sorted(self._legend.items())
                )
            epoch, global_step = step.row
            row = {_epoch_of(own): epoch, "trainer/global_step": global_step, _AXIS: step.position, **media}
            lightnings = (_epoch_of(own), "trainer/global_step")
            fresh = {key: summaries.get(key) for key in row if key not in known and key not in lightnings}
            self._hand_over(run, partial(self._log, run, row, fresh, static, marks))
            known |= set(row)
        self._static |= {
            self._static_key(content): content
            for content in contents
            if content.is_static and (step.stage == "fit" or self._static_key(content) not in self._static)
        }
        self._newest = step if every else self._newest

    def finish(self) -> None:
        """Upload the record, and the page of the newest looks."""
        newest, self._newest = self._newest, None
        if newest is None or self._account is None:
            return
        record = self._account.parent
        for run, own in self._runs().items():
            with suppress(OSError):  # that the service does not answer is said below
                if self.record == "end":
                    self._hand_over(run, partial(upload_record, run, record, newest))
                if self.page_megabytes and (record.parent / "index.html").is_file():
                    self._hand_over(run, partial(self._log_page, run, own, record.parent, newest))

    def close(self) -> None:
        """Wait a few seconds for the service, and say what it has not taken."""
        missing = self._handover.drain()
        if missing:
            service = self._handover.service
            log.error("WandbSink: %d reports have not been taken by %s in time. %s", missing, service, self.remedy)

    def _without_known(self, contents: Sequence[Any], step: Step) -> list[Any]:
        """Leave out what does not change and is in the runs; where it is another outside of fit, it is that stage's."""
        found = []
        for content in contents:
            known = self._static.get(self._static_key(content))
            if known is None or known.items != content.items:
                found.append(content if known is None or step.stage == "fit" else content.under(step.stage))
        return found

    def _static_key(self, content: Encoded) -> tuple[str, ...]:
        return (content.source, *map(name_of, self._runs()))

    def _hand_over(self, run: Any, work: Callable[[], None]) -> None:
        self._handover.service = service_of(run)
        self._handover.put(work)

    def _runs(self) -> dict[Any, str]:
        """The runs, each with the prefix of its logger."""
        if self._loggers is None:
            raise RuntimeError("this WandbSink knows no run yet: call open() first")
        # The WandbLoggers of one process usually share a run, which must not get everything twice.
        runs: dict[Any, str] = {}
        for logger in self._loggers:
            runs.setdefault(logger.experiment, str(getattr(logger, "_prefix", "") or ""))
        return runs

    def _log(
        self,
        run: Any,
        row: Mapping[str, Any],
        fresh: Mapping[str, str | None],
        static: Mapping[str, float],
        marks: Sequence[str],
    ) -> None:
        define = getattr(run, "define_metric", None)
        if define is not None:
            for key, summary in fresh.items():
                chart = hasattr(row[key], "spec")  # W&B keeps a chart's values under a key of their own
                if key == _AXIS:
                    define(key)
                else:
                    define(f"{key}_table" if chart else key, step_metric=_AXIS, summary=summary)
        # Never `step=`: wandb drops rows below its own count of log calls, and Lightning's calls raise that too.
        run.log(dict(row))
        summary = getattr(run, "summary", None)
        if static and summary is not None:
            summary.update(static)
        wait_for(run)
        self._note(run, marks)

    def _note(self, run: Any, marks: Sequence[str]) -> None:
        """Note what is sent."""
        if self._account is not None:
            lines = (json.dumps({"to": name_of(run), "report": mark}) for mark in marks)
            with suppress(OSError), self._account.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))

    def _log_page(self, run: Any, prefix: str, folder: Path, step: Step) -> None:
        """Log the page of the newest looks, where it is not too large, and say where it lies; no error costs more."""
        if not hasattr(run, "log_artifact"):  # Lightning's stand-in
            return
        import wandb

        told: dict[str, Any] = {"file": str((folder / "index.html").resolve())}
        key = f"{key_part(prefix)}/{_PAGE}" if prefix else _PAGE
        try:
            page, size = newest_looks_page(folder, self.page_megabytes * 1e6)
            told["megabytes of the newest looks"] = round(size / 1e6, 1)
            if not page:
                why = f"more than page_megabytes={self.page_megabytes:g}: open the file, or cnnviz bundle"
                told["not uploaded"] = why
            run.config.update({_PAGE: told}, allow_val_change=True)
            if page:
                run.define_metric(key, step_metric=_AXIS)
                epoch, global_step = step.row
                row = {_epoch_of(prefix): epoch, "trainer/global_step": global_step, _AXIS: step.position}
                # Nothing of W&B's is put into it: its style sheet comes from the network.
                run.log({**row, key: wandb.Html(page, inject=False, data_is_not_path=True)})
        except Exception as error:
            log.error("WandbSink: the page is not uploaded, it lies in %s: %s", folder, error)


def _table_key(run: Any, key: str, prefix: str) -> str:
    """A key so short that the artifact which W&B names after it, its prefix and the run has a valid name."""
    return short_key(key, LONGEST_NAME - len(f"run-{name_of(run)}-{prefix}_table-") - _MARK)


def _epoch_of(prefix: str) -> str:
    """The key of Lightning's epoch: WandbLogger puts its prefix before it, but not before the step."""
    return f"{prefix}-epoch" if prefix else "epoch"


def _mark(content: Encoded, step: Step) -> str:
    """What tells a report from all others of a record."""
    parts = (content.source, step.run, step.stage, step.epoch, step.global_step, *sorted(content.items))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _is_a(logger: object, name: str) -> bool:
    """Whether a class of this name is among its classes: `lightning` and `pytorch_lightning` have one each."""
    return any(base.__name__ == name for base in type(logger).__mro__)


class _EncodedImage(Image.Image):
    """An image that is saved as the file that it already is: wandb writes images with `save`.

    Given a file instead, wandb would decode it; given an array, it blackens float ones and drops sides of length 1.
    """

    def __init__(self, file: File) -> None:
        super().__init__()
        self._mode, self._size = "RGB", file.size
        self._content = file.content

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """Write the file."""
        Path(fp).write_bytes(self._content)


def _is_static(item: Any) -> bool:
    return isinstance(item, Value) and item.is_static


def _media(content: Any) -> Any:
    """What W&B is to have under a key."""
    if isinstance(content, Lines):
        return _chart(content)
    if isinstance(content, Cells):
        return _table(content.columns, content.rows)
    if isinstance(content, Value):
        return content.value
    images = [_image(file) for file in content]
    return images[0] if len(images) == 1 else images


def _image(file: File) -> Any:
    import wandb

    return wandb.Image(_EncodedImage(file), caption=file.caption or None, file_type=file.type)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Number | File | None]]) -> Any:
    import wandb

    # A fresh table each time: logged again, the same one keeps its first file.
    data = [[_image(cell) if isinstance(cell, File) else cell for cell in row] for row in rows]
    return wandb.Table(columns=list(columns), data=data)


def _chart(lines: Lines) -> Any:
    import wandb

    points = lines.lines or {"none": ((), ())}
    return wandb.plot.line_series(
        xs=[list(x) for x, _ in points.values()],
        ys=[list(y) for _, y in points.values()],
        keys=list(points),
        title=lines.title,
        xname=lines.x_label,
    )
