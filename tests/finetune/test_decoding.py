"""Image files are upright, keep their range, and cost no more memory than they need."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz.explore import find_exploration_images
from lightning_cnnviz.finetune import decoding
from lightning_cnnviz.finetune.cli import _write
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.decoding import broken_files, read_image_file
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.finetune.sources import find_images, list_images

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def ramp(dtype: Any = np.uint16) -> np.ndarray:
    return np.arange(65536).reshape(256, 256).astype(dtype)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_gray_of_sixteen_bits_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"ramp.{suffix}"
    if suffix == "pgm":
        file.write_bytes(b"P5 256 256 65535\n" + ramp(">u2").tobytes())
    else:
        Image.fromarray(ramp()).save(file)
    found = np.asarray(read_image_file(str(file)).convert("L")).astype(float)
    assert abs(found.mean() - 127.5) < 0.01
    assert abs(found - ramp() / 257).max() <= 0.5
    assert broken_files([str(file)]) == {}


def tiff_of(values: list[int], bits: int, *, zero_is_white: bool) -> bytes:
    """One row of gray values as a TIFF file, written down from its specification."""
    packed = "".join(f"{value:0{bits}b}" for value in values)
    if bits == 16:  # little-endian, as the file is
        packed = "".join(part[8:] + part[:8] for part in (packed[at : at + 16] for at in range(0, len(packed), 16)))
    data = bytes(int(packed[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(packed), 8))
    data += b"\0" * (len(data) % 2)
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: 0 if zero_is_white else 1, 273: 8, 277: 1, 278: 1}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize(
    ("bits", "zero_is_white"),
    # Of 12 bits, Pillow reads one kind alone.
    [(1, False), (1, True), (4, False), (4, True), (8, False), (8, True), (12, False), (16, False), (16, True)],
)
def test_white_is_what_a_tiff_file_says(bits: int, zero_is_white: bool, tmp_path: Path) -> None:
    most = 2**bits - 1
    values = [0, most, most // 3, most // 2, most, 0, 0, most]
    file = tmp_path / "a.tif"
    file.write_bytes(tiff_of(values, bits, zero_is_white=zero_is_white))
    shades = np.array([most - value if zero_is_white else value for value in values]) / most
    assert abs(np.asarray(read_image_file(str(file)).convert("L"))[0] - 255 * shades).max() <= 0.5
    assert not broken_files([str(file)])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.fault(
    "inputs",
    "pixels are fractions or whole numbers of 32 bits, without a range",
    "the file is refused with what to do; no pixel is cut off",
)
def test_pixels_without_a_range_are_refused_and_not_cut_off(tmp_path: Path, dtype: Any) -> None:
    file = str(tmp_path / "a.tif")
    Image.fromarray(ramp(dtype)).save(file)
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image \(its pixels are .* save it with 8 or 16"):
        read_image_file(file)
    assert "save it with 8 or 16 bits" in broken_files([file])[file]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.fault(
    "inputs",
    "a photograph lies on its side or is mirrored, and its EXIF orientation says so",
    "it is shown and trained on upright",
)
def test_photographs_are_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = 255  # white at the top left
    ways = [None, 0, 3, 1, 5, 4, 6, 2]  # PIL's transpositions that EXIF's orientations undo
    stored = Image.fromarray(upright)
    back = {4: 2, 2: 4}  # of quarter turns
    if ways[orientation - 1] is not None:
        stored = stored.transpose(Image.Transpose(back.get(ways[orientation - 1], ways[orientation - 1])))  # type: ignore[arg-type]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    found = np.asarray(read_image_file(str(tmp_path / "a.jpg"))).astype(int)
    assert found.shape == upright.shape
    assert abs(found - upright).mean() < 2


@pytest.mark.fault(
    "inputs",
    "a JPEG has fifty megapixels, and the network takes 224 pixels",
    "an eighth of its rows and columns is decoded; of other formats all is, which takes 4 bytes a pixel",
)
def test_of_fifty_megapixels_only_what_is_needed_is_decoded(tmp_path: Path) -> None:
    file = str(tmp_path / "large.jpg")
    rows, columns = np.mgrid[0:600, 0:900]
    small = Image.fromarray(np.stack([rows * 255 // 599, columns * 255 // 899, rows * 0], -1).astype(np.uint8))
    small.resize((9000, 5600)).save(file)
    assert read_image_file(file, enough=256).size == (1125, 700)
    assert min(read_image_file(file, enough=1000).size) >= 2000
    (tmp_path / "one").mkdir()
    os.rename(file, tmp_path / "one" / "large.jpg")
    found = find_exploration_images(tmp_path / "one")[0][0]
    small.save(tmp_path / "one" / "large.jpg", quality=95)
    expected = find_exploration_images(tmp_path / "one")[0][0]
    assert float((found - expected).abs().max()) < 0.15  # of a range of four


@pytest.mark.fault(
    "memory",
    "files of fifty megapixels each are checked by eight threads",
    "they are decoded one at a time, in one thread, so that eight take the memory of one (200 MB)",
)
def test_large_images_are_checked_one_at_a_time_in_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [100, 300, 100, 301, 302, 100]
    files = [str(tmp_path / f"{number}.png") for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        Image.new("RGB" if size != 301 else "F", (size, size)).save(file, "PNG" if size != 301 else "TIFF")
    threads: dict[int, set[int]] = {}
    check = decoding._check_range

    def checked(image: Image.Image, kind: str | None) -> None:
        threads.setdefault(image.width, set()).add(threading.get_ident())
        check(image, kind)

    monkeypatch.setattr(decoding, "_MOST_PIXELS", 25_000)
    monkeypatch.setattr(decoding, "_check_range", checked)
    assert [*broken_files(files)] == [files[3]]  # whatever its size
    own = {threading.get_ident()}
    assert threads[300] == threads[301] == threads[302] == own
    assert not threads[100] & own


@pytest.mark.fault(
    "memory",
    "memory runs out while an image file is decoded",
    "the error says so and names the file; the file is not called broken",
)
def test_too_little_memory_is_not_called_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(file)

    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_check_range", fails)
    for read in (read_image_file, lambda name: broken_files([name])):
        with pytest.raises(MemoryError, match=r"a\.png: there is not enough memory"):
            read(file)


def refuse_wide(image: Any) -> Tensor:
    if image.width > 4:
        raise RuntimeError("too wide")
    return torch.zeros(1)


@pytest.mark.fault(
    "inputs",
    "a file cannot be decoded or transformed in a loader's worker",
    "the error names the file, and what is wrong with it",
)
def test_an_error_in_a_worker_names_the_file(tmp_path: Path) -> None:
    for name, size in (("a", (4, 4)), ("b", (5, 4))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    images = find_exploration_images(tmp_path)
    images.transform = refuse_wide
    with pytest.raises(ValueError, match=r"b\.png cannot be transformed \(RuntimeError: too wide\)"):
        list(DataLoader(images, num_workers=1))
    (tmp_path / "b.png").write_bytes(b"nothing")
    images = find_exploration_images(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image") as caught:
        images[1]
    assert "on_corrupt" not in str(caught.value)  # which this has not


def end_at_wide(image: Any) -> Tensor:
    if image.width > 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(3, 8, 8)


BROKEN_OFF = r"DataLoader worker .* (killed by signal|exited unexpectedly)|Errno (104|111|32)|^$"
BROKEN_OFF_WARNINGS = (
    "ignore:.*use of fork",
    "ignore:.*fork\\(\\)",
    # multiprocessing does not close the socket of a connection that breaks off, and torch's loader raises once more
    # as it is deleted.
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.fault(
    "processes",
    "a worker of the data is killed (SIGKILL) while it reads an image, as systems do that lack memory",
    "torch's error ends the fit, and one line names the image and what needs less memory",
)
@pytest.mark.filterwarnings("ignore:.*does not have many workers", *BROKEN_OFF_WARNINGS)
def test_a_worker_that_is_killed_says_what_it_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = with_a_killed_worker(tmp_path)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path / "out",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # torch misses the process, or the batch that was on its way from it breaks off: which comes first is chance.
    with pytest.raises((RuntimeError, ConnectionError, EOFError), match=BROKEN_OFF):
        trainer.fit(FineTuner(network, 2, image_size=(3, 8, 8)), data)
    (line,) = [entry.message for entry in caplog.records if "ended from outside" in entry.message]
    assert f"while it read {tmp_path / 'train' / 'dog' / 'wide.png'}. Fewer workers (num_workers=1)" in line


def with_a_killed_worker(folder: Path) -> ImageFolderDataModule:
    for name in ("cat", "dog"):
        write(folder / "train" / name, 4)
    Image.new("RGB", (9, 8)).save(folder / "train" / "dog" / "wide.png")
    data = ImageFolderDataModule(folder, image_size=8, val=0, num_workers=1, batch_size=3)
    data.train_set.transform = end_at_wide
    return data


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
@pytest.mark.filterwarnings(*BROKEN_OFF_WARNINGS)
def test_a_batch_that_breaks_off_is_a_killed_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    data = with_a_killed_worker(tmp_path)
    data.on_exception(error)  # of something else: no worker of ours has ended
    assert not caplog.records
    with pytest.raises((RuntimeError, ConnectionError, EOFError), match=BROKEN_OFF):
        list(DataLoader(data.train_set, batch_size=3, num_workers=1))
    data.on_exception(error)
    (line,) = [entry.message for entry in caplog.records]
    assert f"while it read {tmp_path / 'train' / 'dog' / 'wide.png'}. Fewer workers" in line


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_torch_may_miss_a_killed_worker_while_we_ask_whether_it_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch raises by the signal that a child has ended: wherever this process happens to be.
    def interrupted(_: float) -> None:
        raise RuntimeError(f"DataLoader worker (pid {os.getpid()}) is killed by signal: Killed. ")

    data = with_a_killed_worker(tmp_path)
    data.train_set._reading[0] = torch.tensor([os.getpid(), 5])
    # In that module alone: other threads sleep, too.
    alive = SimpleNamespace(active_children=lambda: [SimpleNamespace(pid=os.getpid())])
    monkeypatch.setattr("lightning_cnnviz.finetune.data.multiprocessing", alive)
    monkeypatch.setattr(
        "lightning_cnnviz.finetune.data.time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted)
    )
    data.on_exception(ConnectionResetError(104, "Connection reset by peer"))
    (line,) = [entry.message for entry in caplog.records]
    assert "while it read" in line


# Listing


def write(place: Path, count: int = 4, color: int = 0) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (color, number, 0)).save(place / f"{number}.png")


def listed(folder: Path) -> dict[str, dict[str, int]]:
    source = find_images(folder)
    return {
        part: {name: images.labels.count(label) for label, name in enumerate(source.classes)}
        for part, images in source.parts.items()
    }


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.fault(
    "inputs",
    "links in an image folder lead to parents, to other classes, to themselves or to nothing",
    "each file is there once in each part, in the class of the folder in which it lies, and the links are counted",
)
def test_links_in_cycles_and_to_parents_show_each_image_once_and_in_its_own_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for color, name in enumerate(("cat", "dog")):
            write(tmp_path / part / name, 4, color)
    cat, dog = tmp_path / "train" / "cat", tmp_path / "train" / "dog"
    for place, link, target in (
        (cat, "self", cat),
        (cat, "root", tmp_path),
        (cat, "part", tmp_path / "train"),
        (cat, "other", dog),
        (dog, "other", cat),
        (dog, "again.png", dog / "0.png"),
        (dog, "gone", tmp_path / "nowhere"),
        (dog, "loop", dog / "loop"),
        (dog, "loop.png", dog / "loop.png"),
        (dog, "there", dog / "back"),
        (dog, "back", dog / "there"),
        (tmp_path, "up", tmp_path.parent),
        (tmp_path / "train", "here", tmp_path / "train"),
        (tmp_path / "train", "loop", tmp_path / "train" / "loop"),
    ):
        (place / link).symlink_to(target)
    # The image that is a link to itself is one that cannot be read.
    assert listed(tmp_path) == {"test": {"cat": 4, "dog": 4}, "train": {"cat": 4, "dog": 5}}
    assert find_images(tmp_path).ignored["links to images that are there already"] == 11
    assert [*broken_files([str(dog / "loop.png"), str(dog / "0.png")])] == [str(dog / "loop.png")]
    assert len(list_images(tmp_path / "train")) == 9


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_images_that_lie_elsewhere_are_there_by_their_links(tmp_path: Path) -> None:
    write(tmp_path / "store" / "deep", 3)
    write(tmp_path / "store2", 3)
    data = tmp_path / "data"
    (data / "one").mkdir(parents=True)
    for number in range(3):
        (data / "one" / f"{number}.png").symlink_to(tmp_path / "store" / "deep" / f"{number}.png")
    (data / "two").symlink_to(tmp_path / "store2")
    assert listed(data) == {"all": {"one": 3, "two": 3}}


@pytest.mark.fault(
    "inputs",
    "an image folder has hidden files and folders (`.ipynb_checkpoints`, `._0.png`)",
    "they are no images and no classes",
)
def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    write(tmp_path / "cat")
    write(tmp_path / "dog")
    write(tmp_path / ".ipynb_checkpoints")
    write(tmp_path / "cat" / ".ipynb_checkpoints")
    (tmp_path / "cat" / "._0.png").write_bytes(b"resource fork")
    assert listed(tmp_path) == {"all": {"cat": 4, "dog": 4}}
    write(tmp_path / "dog" / ".cache")
    assert len(find_exploration_images(tmp_path / "dog")) == 4


@pytest.mark.fault(
    "memory",
    "a folder of very many images is listed",
    "listing takes under 1 kB a file, whatever the images' size",
)
def test_listing_takes_little_memory(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(1000):
            (tmp_path / name / f"image-{number:06d}.png").touch()
    tracemalloc.start()
    source = find_images(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.parts["all"].labels) == 2000
    assert peak < 2000 * 1000 + 200_000


@pytest.mark.skipif(os.name != "posix", reason="names that are bytes")
def test_names_that_are_not_utf8_can_be_trained_on_and_cost_no_prediction(tmp_path: Path) -> None:
    try:
        for name in (NOT_UTF8, "dog"):
            write(tmp_path / "data" / name, 6)
            os.rename(tmp_path / "data" / name / "0.png", tmp_path / "data" / name / f"{NOT_UTF8}.png")
    except OSError:
        pytest.skip("this file system has no such names")
    data = ImageFolderDataModule(tmp_path / "data", image_size=8)
    data.setup("fit")
    assert data.num_classes == 2
    assert len(next(iter(data.train_dataloader()))[0])
    assert data.train_set.checksum()
    rows = {0: [NOT_UTF8, "a"], 1: ["\ud800", "b"], 2: ["c", "c"]}
    text = _write(tmp_path / "out" / "predictions.csv", ["file", "class"], rows).read_text(encoding="utf-8")
    assert text.splitlines() == ["file,class", r"caf\udce9,a", r"\ud800,b", "c,c"]
