"""The record: a folder to which looks are added, and which anyone can read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_cnnviz import __version__
from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.core.top_patches.results import SourceImage
from lightning_cnnviz.files import sweep, write_file
from lightning_cnnviz.record._files import Packs, locked, read_json, write_json, write_pack
from lightning_cnnviz.record._patches import packed_patches, unpacked_patches
from lightning_cnnviz.record.data import SCHEMA, from_tree, plain, to_tree
from lightning_cnnviz.record.identity import LookIdentity
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.image import LOSSLESS_SIDE, decode_tile, encode_tile
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.views import Drawable, Seen, carry_on, draw_last, draw_view
from lightning_cnnviz.report import Report, Step

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "RecordedLook"]

_HEAD, _LOCK = "record.json", "lock"
_PARTS = ("looks", "packs", "images")  # folders
_FORMAT = "lightning_cnnviz record"
# Where a record lies in the folder of a run, or of a page.
_PLACES = (".", "record", "cnnviz/record")
_LOOK = re.compile(r"\d{19}-[0-9a-f]{8}")
_IMAGE = re.compile(r"[0-9a-f]{20}\.(?:png|jpg)")
_AS_IT_IS = Normalization((0.0,), (1.0,), "given")
_ENCODERS = 4  # threads


class RecordedLook:
    """One look of a record; what it saw is read when it is asked for.

    Attributes:
        record: The record that it is in.
        id: Its name in the record; names sort by time.
        identity: Which look it is.
        bytes: What it has added to the record, in bytes.
    """

    def __init__(self, record: Record, look_id: str, identity: LookIdentity, size: int) -> None:
        self.record, self.id, self.identity, self.bytes = record, look_id, identity, size

    @property
    def epoch(self) -> int:
        """Number of training epochs that were complete."""
        return self.identity.epoch

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The monitor's arguments, as plain values."""
        return self.identity.arguments

    @property
    def step(self) -> Step:
        """When it was taken."""
        return self.identity.step

    @property
    def result(self) -> Any:
        """What was computed; patches of large images are cut from the images as they were stored.

        Raises:
            ValueError: It is damaged; or this look has a report alone.
        """
        return self.seen().result

    @property
    def outline(self) -> Any:
        """What was computed, without the pixels of mined patches: no image is read."""
        return self._value(self._content(), "result")

    @property
    def display(self) -> Display:
        """How people see the images behind it."""
        return self._display(self._content())

    @property
    def carried(self) -> Any:
        """What later looks of its series need of it; see `render.views.carry_on`."""
        return self._value(self._content(), "carried")

    def earlier(self) -> list[RecordedLook]:
        """Return the looks of its series before it, oldest first."""
        return self.record.before(self.identity)

    def seen(self) -> Seen:
        """Return what it has seen, read once.

        Raises:
            ValueError: It is damaged; or this look has a report alone.
        """
        return self._seen(self._content())

    def report(self) -> Report:
        """Draw it, with what earlier looks of its series carried on."""
        content = self._content()
        if "result" in content:
            report = draw_view(self.identity.view, self._seen(content), Carried(self.earlier()))
        else:
            report = self._value(content, "report")
        return replace(report, name=self.identity.name)

    def last_report(self) -> Report | None:
        """Draw what is shown once more when a run ends with this look; None for nothing."""
        content = self._content()
        if "result" not in content:
            return None
        report = draw_last(self.identity.view, self._seen(content), Carried(self.earlier()))
        return None if report is None else replace(report, name=self.identity.name)

    @property
    def has_result(self) -> bool:
        """Whether there is a result; else a report alone."""
        return "result" in self._content()

    def _content(self) -> Any:
        # Read anew each time: what all looks of a long run hold does not fit into memory.
        return self.record._content_of(self.id)

    def _seen(self, content: Any) -> Seen:
        if "result" not in content:
            raise ValueError(f"look {self.id} of '{self.identity.view}' has a report alone, and no result")
        display = self._display(content)
        value, crops = self._value(content, "result"), self._value(content, "crops")
        result = unpacked_patches(value, crops, display.normalization, self.record.image)
        return Seen(result=result, display=display, arguments=self.arguments, epoch=self.epoch)

    def _display(self, content: Any) -> Display:
        display: Display | None = self._value(content, "display")
        return Display() if display is None else display

    def _value(self, content: Any, part: str) -> Any:
        if content.get(part) is None:
            return None

        try:
            with Packs(self.record.folder / "packs") as packs:
                tensors = content["tensors"]
                return from_tree(
                    content[part], lambda name: packs.tensor(name, tensors[name]), schema=content["schema"]
                )
        except (ValueError, OSError) as error:
            raise ValueError(f"look {self.id} in {self.record.folder} is damaged: {error}") from error


class Carried(Sequence[Any]):
    """What some looks carry on, read one by one."""

    def __init__(self, looks: Sequence[RecordedLook]) -> None:
        self._looks = looks

    def __len__(self) -> int:
        return len(self._looks)

    def __getitem__(self, place: Any) -> Any:
        return [look.carried for look in self._looks[place]] if isinstance(place, slice) else self._looks[place].carried


class Record:
    """A folder of looks, to which any number of processes may add; nothing in it is ever changed.

    A look is there once its own file is, which is written last. Tensors and images are there once, by their content.
    Nothing in it is ever run.

    Args:
        folder: The record's folder; it need not be there yet.
        lasting: Whether `add` waits until a look is on the disk, so that it outlives the machine's end, too.

    Raises:
        ValueError: The folder is no record, or needs a newer version.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from lightning_cnnviz import layer_table
        >>> from lightning_cnnviz.render.views import Seen
        >>> table = layer_table(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     look = Record(folder).add(LookIdentity(view="layer_table"), Seen(result=table))
        ...     [(each.identity.view, each.result.parameters) for each in Record(folder).looks()]
        [('layer_table', 20)]
    """

    def __init__(self, folder: str | Path, *, lasting: bool = True) -> None:
        self.folder, self._lasting = Path(folder), lasting
        self._read: dict[str, RecordedLook] = {}
        self._damaged: dict[str, str] = {}
        self._packs: dict[str, str] = {}  # of tensors that are in the record, their pack
        self._images: dict[bytes, str] = {}  # of images that were put, by what they were made of, their name
        self._check_head()
        for place in (self.folder, *(self.folder / part for part in _PARTS)):
            sweep(place)

    @classmethod
    def within(cls, folder: Path) -> Record:
        """Open a record by its own folder, or by that of the page or run that it belongs to.

        Raises:
            ValueError: There is none, or it needs a newer version.
        """
        # By its head: a page has a folder of looks, too.
        place = next((folder / place for place in _PLACES if (folder / place / _HEAD).is_file()), None)
        if place is None:
            raise ValueError(f"there is no record in {folder}")
        return cls(place)

    def looks(
        self, *, view: str | None = None, name: str | None = None, stage: str | None = None, run: str | None = None
    ) -> list[RecordedLook]:
        """Return the looks that are there now, oldest first; those that are damaged are left out (see `check`)."""
        self._look_around()
        wanted = {"view": view, "name": name, "stage": stage, "run": run}
        asked = {field: value for field, value in wanted.items() if value is not None}
        looks = (look for _, look in sorted(self._read.items()))
        return [look for look in looks if all(getattr(look.identity, each) == asked[each] for each in asked)]

    def before(self, identity: LookIdentity) -> list[RecordedLook]:
        """Return the looks of a look's series that were taken before it, oldest first.

        Of several at one step, only the newest: a run that was resumed from a checkpoint has taken some looks again.
        """
        series = (look for look in self.looks(run=identity.run) if look.identity.series == identity.series)
        by_step = {look.identity.moment: look for look in series if look.identity.moment < identity.moment}
        return [look for _, look in sorted(by_step.items())]

    def look(self, look_id: str) -> RecordedLook:
        """Return a look by its name.

        Raises:
            KeyError: There is none, or it is damaged.
        """
        if look_id not in self._read:
            self._look_around()
        return self._read[look_id]

    def add(self, identity: LookIdentity, seen: Drawable | Report) -> RecordedLook:
        """Add a look; when this returns, it is there for good.

        Args:
            identity: Which look it is; the time is filled in.
            seen: What was seen; or a report, of what has no result.

        Raises:
            OSError: It cannot be written. The record is as it was; the same look may be added later.
            TypeError: The result is none that can be kept as data.
            ValueError: Likewise; or the record needs a newer version.
        """
        with contextlib.suppress(FileNotFoundError):
            self._check_head()
        self._make_folders()
        with locked(self.folder / _LOCK, alone=False):
            return self._added(identity, seen)

    def _added(self, identity: LookIdentity, seen: Drawable | Report) -> RecordedLook:
        self._look_around()
        content, tensors, size = self._described(identity, seen)
        now = time.time_ns()
        look_id = f"{now:019d}-{secrets.token_hex(4)}"
        file, pack = self.folder / "looks" / f"{look_id}.json", self.folder / "packs" / f"{look_id}.safetensors"
        new = {name: tensor for name, tensor in tensors.items() if name not in self._packs}
        packs = {name: self._packs.get(name, look_id) for name in tensors}
        identity = replace(identity, time=now / 1e9, arguments=plain(identity.arguments))
        content |= {"schema": SCHEMA, "version": __version__, "tensors": packs, "identity": to_tree(identity)[0]}
        try:
            if new:
                size += write_pack(pack, new, lasting=self._lasting)
            size += write_json(file, content | {"bytes": size}, lasting=self._lasting)
        except BaseException:
            if not file.exists():
                pack.unlink(missing_ok=True)  # on a full disk, each trial would leave one
            raise
        self._packs.update(packs)
        look = self._read[look_id] = RecordedLook(self, look_id, identity, size)
        return look

    def image(self, name: str) -> Tensor:
        """Return a stored image as pixels `(3, H, W)` uint8.

        Raises:
            ValueError: There is no such image, or it is damaged.
        """
        if not isinstance(name, str) or not _IMAGE.fullmatch(name):
            raise ValueError(f"{str(name)[:80]!r} is no name of an image")
        try:
            return decode_tile((self.folder / "images" / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"image {name} cannot be read: {error}") from error

    def size(self) -> int:
        """Return how many bytes the record takes."""
        return sum(map(_size_of, self.folder.rglob("*")))

    def scalars(self) -> pd.DataFrame:
        """Return the scalars of all looks, see `scalars_frame`."""
        from lightning_cnnviz.record.frames import scalars_frame

        return scalars_frame(self.looks())

    def table(self, view: str) -> pd.DataFrame:
        """Return what all looks of a view have found, see `table_frame`.

        Raises:
            ValueError: There is no look of this view.
        """
        from lightning_cnnviz.record.frames import table_frame

        looks = self.looks(view=view)
        if not looks:
            views = sorted({look.identity.view for look in self.looks()})
            raise ValueError(f"{self.folder} has no look of '{view}'.{suggestion(view, views, ' ')} It has {views}")
        return table_frame(looks)

    def check(self) -> list[str]:
        """Read everything; return what is damaged, a sentence each."""
        looks = self.looks()
        problems = list(self._damaged.values())
        for look in looks:
            try:
                _ = look.seen() if look.has_result else look.report(), look.carried
            except ValueError as error:  # noqa: PERF203 - of each look
                problems.append(str(error))
        return problems

    def thin(self, max_megabytes: float) -> list[str]:
        """Take looks away until the record is no larger, as far as that goes; nothing is ever taken away without this.

        Of each series there stay at least the first look, those after 2, 5, 10, 20, 50, ... times as many steps, and
        the newest; others go, oldest first.

        Returns:
            The names of the looks that were taken away.

        Raises:
            OSError: A file cannot be taken away.
        """
        if not self.folder.exists():
            return []
        gone: list[str] = []
        with locked(self.folder / _LOCK, alone=True):
            looks = self.looks()
            spare = deque(look.id for look in looks if look.id not in _kept_always(looks))
            self._drop_unused()
            while spare and self.size() > max_megabytes * 1e6:
                # One pack may serve many looks, so that only trying says what their end gives.
                for look_id in [spare.popleft() for _ in range(max(1, len(spare) // 10))]:
                    (self.folder / "looks" / f"{look_id}.json").unlink(missing_ok=True)
                    gone.append(look_id)
                self._drop_unused()
        return gone

    # Writing.

    def _described(
        self, identity: LookIdentity, seen: Drawable | Report
    ) -> tuple[dict[str, Any], dict[str, Tensor], int]:
        """Write a look's images; return its parts as trees, its tensors by name, and how many bytes the images have."""
        parts: dict[str, Any]
        size = 0
        if isinstance(seen, Report):
            parts = {"report": seen}
        else:
            with self._writing_images() as (put, sizes):
                result, crops = packed_patches(seen.result, seen.display.normalization, put)
            size = sum(written.result() for written in sizes)
            parts = {
                "result": result,
                "crops": crops,
                "display": seen.display,
                "carried": carry_on(identity.view, seen),
            }
        trees, tensors = {}, {}
        for part, value in parts.items():
            if value is not None:
                trees[part], own = to_tree(value)
                tensors.update(own)
        return trees, tensors, size

    @contextlib.contextmanager
    def _writing_images(
        self,
    ) -> Iterator[tuple[Callable[[SourceImage, Normalization | None], str], list[Future[int]]]]:
        """Give a function that writes an image, if it is new, and returns its name; and how many bytes it wrote."""
        sizes: list[Future[int]] = []
        # Encoding and the disk leave Python to others: four threads take less than half the time of one.
        with ThreadPoolExecutor(_ENCODERS) as pool:

            def put(source: SourceImage, normalization: Normalization | None) -> str:
                key = _source_key(source, normalization)
                name = self._images.get(key)
                if name is None or not (self.folder / "images" / name).exists():
                    pixels = _AS_IT_IS.to_pixels(source.levels)
                    if normalization is not None:
                        pixels = normalization.to_pixels(source.values())
                    name = self._images[key] = _file_name(pixels)
                    sizes.append(pool.submit(self._write_image, name, pixels))
                return name

            yield put, sizes

    def _write_image(self, name: str, pixels: Tensor) -> int:
        path = self.folder / "images" / name
        if path.exists():
            return 0
        _, encoded = encode_tile(pixels)
        write_file(path, encoded, lasting=self._lasting)
        return len(encoded)

    def _drop_unused(self) -> None:
        """Take away packs and images that no look refers to; nobody may be adding one meanwhile."""
        self._look_around()
        if self._damaged:
            return  # who knows what they refer to
        images: set[str] = set()
        packs: set[str] = set()
        for look_id in self._read:
            content = self._content_of(look_id)
            packs.update(content["tensors"].values())
            images.update(_IMAGE.findall(json.dumps(content.get("crops"))))
        for folder, kept in (("packs", packs), ("images", images)):
            for file in (self.folder / folder).iterdir():
                if (file.stem if folder == "packs" else file.name) not in kept and not file.name.startswith("."):
                    file.unlink(missing_ok=True)
        self._packs = {tensor: pack for tensor, pack in self._packs.items() if pack in packs}

    def _make_folders(self) -> None:
        for part in _PARTS:
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if not (self.folder / _HEAD).exists():
            head = {"format": _FORMAT, "schema": SCHEMA, "version": __version__}
            write_json(self.folder / _HEAD, head, lasting=self._lasting)

    # Reading.

    def _check_head(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; a record is a folder")
        head = self.folder / _HEAD
        if not head.exists():
            if any(self.folder.iterdir()) and not (self.folder / "looks").is_dir():
                raise ValueError(f"{self.folder} is no record: it has other files, and no {_HEAD}")
            return
        content = read_json(head)
        if not isinstance(content, dict) or content.get("format") != _FORMAT or type(content.get("schema")) is not int:
            raise ValueError(f"{self.folder} is no record: its {_HEAD} is of another kind")
        _check_schema(content, self.folder)

    def _look_around(self) -> None:
        """Read the looks that are new since the last time."""
        names = {file.stem for file in (self.folder / "looks").glob("*.json") if _LOOK.fullmatch(file.stem)}
        gone = self._read.keys() - names
        for look_id in gone:
            del self._read[look_id]
        if gone:  # other looks may still refer to their packs
            there = {file.stem for file in (self.folder / "packs").glob("*.safetensors")}
            self._packs = {tensor: pack for tensor, pack in self._packs.items() if pack in there}
        for look_id in sorted(names - self._read.keys() - self._damaged.keys()):
            try:
                content = self._content_of(look_id)
                look = self._look(look_id, content)
            except FileNotFoundError:
                continue  # it has been taken away since
            except (ValueError, OSError) as error:
                self._damaged[look_id] = f"look {look_id} in {self.folder} is damaged: {error}"
                continue
            self._read[look_id] = look
            self._packs.update(content["tensors"])

    def _content_of(self, look_id: str) -> dict[str, Any]:
        content = read_json(self.folder / "looks" / f"{look_id}.json")
        if not isinstance(content, dict) or type(content.get("schema")) is not int:
            raise ValueError("it is no look")
        _check_schema(content, self.folder)
        packs = content.get("tensors")
        if not isinstance(packs, dict) or not all(isinstance(p, str) and _LOOK.fullmatch(p) for p in packs.values()):
            raise ValueError("it names packs that are none")
        return content

    def _look(self, look_id: str, content: Mapping[str, Any]) -> RecordedLook:
        identity = from_tree(content.get("identity"), _no_tensor, schema=content["schema"])
        if not isinstance(identity, LookIdentity):
            raise ValueError("it does not say which look it is")
        own = (self.folder / "looks" / f"{look_id}.json").stat().st_size
        beside = content.get("bytes")
        return RecordedLook(self, look_id, identity, own + (beside if type(beside) is int else 0))


def _file_name(pixels: Tensor) -> str:
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=10)
    digest.update(pixels.contiguous().numpy().data)
    media = "png" if max(pixels.shape[1:]) <= LOSSLESS_SIDE else "jpg"
    return f"{digest.hexdigest()}.{media}"


def _source_key(source: SourceImage, normalization: Normalization | None) -> bytes:
    """Equal for images that look equal; cheaper than making their pixels."""
    scale = normalization and (
        source.low.tolist(),
        source.high.tolist(),
        normalization.mean,
        normalization.std,
        normalization.channels,
    )
    digest = hashlib.blake2b(repr((tuple(source.levels.shape), scale)).encode(), digest_size=16)
    digest.update(source.levels.contiguous().numpy().data)
    return digest.digest()


def _kept_always(looks: Sequence[RecordedLook]) -> set[str]:
    """Of each series the first look, the newest, and those from 1, 2, 5, 10, 20, 50, ... times its first steps on."""
    series: dict[object, list[RecordedLook]] = {}
    for look in looks:
        series.setdefault(look.identity.series, []).append(look)
    kept = set()
    for own in series.values():
        kept |= {own[0].id, own[-1].id}
        mark, factor = 0.0, cycle((2.0, 2.5, 2.0))
        for look in sorted(own, key=lambda look: look.identity.moment):
            steps = look.identity.global_step
            if steps > 0 and steps >= mark:  # a second time, these are found again
                kept.add(look.id)
                mark = mark or steps
                while mark <= steps:
                    mark *= next(factor)
    return kept


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # it has been taken away since
        return 0


def _no_tensor(name: str) -> Tensor:
    raise KeyError(name)


def _check_schema(content: Mapping[str, Any], folder: Path) -> None:
    if content["schema"] > SCHEMA:
        raise ValueError(
            f"{folder} needs lightning_cnnviz {str(content.get('version'))[:40]} or newer (schema "
            f"{content['schema']}); this is {__version__} (schema {SCHEMA})"
        )
