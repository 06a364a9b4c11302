"""Images by class: what is drawn, what is held out, what a network is given, and what is said of bad data."""

from __future__ import annotations

import pickle
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from lightning_cnnviz.core.data.batches import IndexReader
from lightning_cnnviz.demo import Digits
from lightning_cnnviz.finetune.data import ImageFolderDataModule
from lightning_cnnviz.finetune.images import LabeledImages
from lightning_cnnviz.finetune.presets import image_transform
from lightning_cnnviz.finetune.splits import ImageSplit, split_images
from lightning_cnnviz.render.display import class_names
from lightning_cnnviz.render.normalization import find_normalization

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def write_images(
    folder: Path, counts: Mapping[str, int], suffix: str = ".png", size: tuple[int, int] = (24, 18)
) -> Path:
    """Images of noise, each another one, in a folder a class."""
    numbers = np.random.default_rng(len(str(folder)) + sum(counts.values()))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = numbers.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}{suffix}")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder split by class, of unequal classes."""
    return write_images(tmp_path_factory.mktemp("whole"), {"ant": 20, "bee": 10, "cat": 40}, size=(4, 4))


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parted")
    write_images(folder / "train", {"ant": 10, "bee": 8})
    write_images(folder / "test", {"ant": 3, "bee": 2})
    return folder


def of(folder: str | Path, **options: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(folder, **{"image_size": 16, "batch_size": 4, **options})


def files(images: LabeledImages | None) -> list[str]:
    assert images is not None
    assert images.files is not None
    return images.files


def epoch(data: ImageFolderDataModule, number: int) -> tuple[Tensor, Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


# Which image is where


def test_one_folder_is_split_by_class(whole: Path) -> None:
    data = of(whole, val=0.25, test=0.2)
    assert data.class_names == ["ant", "bee", "cat"]
    assert (data.num_classes, data.image_shape) == (3, (3, 16, 16))
    assert data.val_set is not None
    assert data.test_set is not None
    # A fifth, and a quarter of the rest to the nearest, of each class.
    assert Counter(data.test_set.targets) == {0: 4, 1: 2, 2: 8}
    assert Counter(data.val_set.targets) == {0: 4, 1: 2, 2: 8}
    assert Counter(data.targets) == {0: 12, 1: 6, 2: 24}
    everything = [*files(data.train_set), *files(data.val_set), *files(data.test_set)]
    assert sorted(everything) == sorted(str(path) for path in whole.rglob("*.png"))
    for images in (data.train_set, data.val_set, data.test_set):
        assert [Path(file).parent.name for file in files(images)] == [images.classes[n] for n in images.targets]


@given(
    counts=st.lists(st.integers(4, 40), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
    val=st.one_of(st.integers(0, 1), st.sampled_from([0.1, 0.25, 0.5])),
    test=st.one_of(st.integers(0, 1), st.sampled_from([0.1, 0.2])),
)
def test_splits_are_stratified_disjoint_and_nested(counts: list[int], seed: int, val: float, test: float) -> None:
    start, by_class = 0, {}
    for number, count in enumerate(counts):
        by_class[f"class {number}"] = list(range(start, start + count))
        start += count

    def split(per_class: int | None, val: float = val) -> ImageSplit:
        return split_images(by_class, seed, val=val, test=test, per_class=per_class, where="it")

    full = split(None)
    assert sorted([*full.train, *full.val, *full.test]) == list(range(start))
    for indices in by_class.values():
        for held, asked, among in (
            (full.test, test, len(indices)),
            (full.val, val, len(indices) - len(set(indices) & set(full.test))),
        ):
            number = len(set(indices) & set(held))
            assert number == asked if isinstance(asked, int) else abs(number - asked * among) <= 0.5 or number == 1
    least = min(len(set(indices) & set(full.train)) for indices in by_class.values())
    few, more = split(1), split(least)
    assert set(few.train) <= set(more.train) <= set(full.train)
    assert (few.val, few.test) == (more.val, more.test) == (full.val, full.test)
    assert len(few.train) == len(counts)
    assert len(more.train) == least * len(counts)
    # What is drawn first does not depend on what is held out, nor on the other classes.
    assert split(1, val=0).train == few.train
    first = {"class 0": by_class["class 0"]}
    alone = split_images(first, seed, val=val, test=test, per_class=None, where="it")
    assert alone.train == sorted(set(full.train) & set(first["class 0"]))
    with pytest.raises(ValueError, match=rf"per_class={least + 1}: it has too few training images of class \d"):
        split(least + 1)


def test_the_manifest_names_the_files_of_each_part(whole: Path) -> None:
    data = of(whole)
    told = data.split_manifest()
    assert told is not None
    assert [told[part] for part in ("train", "val", "test")] == [
        images.files for images in (data.train_set, data.val_set, data.test_set) if images is not None
    ]


def test_seeds_draw_different_images_and_one_seed_the_same(whole: Path) -> None:
    first, again, other = (of(whole, per_class=5, seed=seed) for seed in (1, 1, 2))
    assert files(first.train_set) == files(again.train_set)
    assert set(files(first.train_set)) != set(files(other.train_set))
    assert set(files(first.train_set)) < set(files(of(whole, per_class=7, seed=1).train_set))


def test_each_class_is_drawn_in_its_own_way() -> None:
    by_class = {name: list(range(40)) for name in ("a", "b")}
    drawn = [
        split_images({name: by_class[name]}, 0, val=0, test=0, per_class=20, where="it").train for name in ("a", "b")
    ]
    assert drawn[0] != drawn[1]


def test_parts_are_folders(parted: Path, tmp_path: Path) -> None:
    data = of(parted, val=2)
    assert data.test_set is not None
    assert data.val_set is not None
    assert {Path(file).parts[-3] for file in files(data.test_set)} == {"test"}
    assert {Path(file).parts[-3] for file in [*files(data.val_set), *files(data.train_set)]} == {"train"}
    assert Counter(data.val_set.targets) == {0: 2, 1: 2}
    assert Counter(data.targets) == {0: 8, 1: 6}
    for name in ("val", "valid", "validation"):
        folder = tmp_path / name
        write_images(folder / "train", {"ant": 3, "bee": 3})
        write_images(folder / name, {"ant": 1, "bee": 1})
        (folder / "notes").mkdir()
        own = of(folder)
        assert len(files(own.val_set)) == 2
        assert len(own.train_set) == 6
        held_out = of(folder, val=1)
        assert len(files(held_out.val_set)) == 2
        assert len(held_out.train_set) == 4
        assert {Path(file).parts[-3] for file in files(held_out.val_set)} == {"train"}


def test_train_may_be_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, {"bus": 5, "car": 5, "train": 5}, size=(4, 4))
    assert of(tmp_path).class_names == ["bus", "car", "train"]


def test_chosen_classes_are_numbered_in_their_order(whole: Path) -> None:
    data = of(whole, classes=["cat", "ant"], per_class=3, val=2)
    assert data.class_names == ["cat", "ant"]
    assert data.num_classes == 2
    assert Counter(data.targets) == {0: 3, 1: 3}
    for file, target in zip(files(data.train_set), data.targets, strict=True):
        assert Path(file).parent.name == data.class_names[target]
    # The same images as among all classes.
    assert set(files(data.train_set)) < set(files(of(whole, per_class=3, val=2).train_set))


# What the network is given


@pytest.mark.parametrize("size", [(24, 18), (18, 24), (500, 375), (37, 64)])
@pytest.mark.parametrize("side", [16, 224])
def test_pixels_are_those_of_torchvisions_own_pipeline(tmp_path: Path, size: tuple[int, int], side: int) -> None:
    write_images(tmp_path, {"a": 2, "b": 2}, ".jpg", size)
    data = ImageFolderDataModule(tmp_path, val=1, test=0, image_size=side, augment="none")
    usual = v2.Compose(
        [
            v2.Resize(round(side * 256 / 224)),
            v2.CenterCrop(side),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    folder = datasets.ImageFolder(tmp_path)
    oracle = {path: usual(folder.loader(path)) for path, _ in folder.samples}
    assert data.val_set is not None
    for images in (data.train_set, data.val_set):
        for file, (pixels, _) in zip(files(images), images, strict=True):  # type: ignore[call-overload]
            assert type(pixels) is Tensor
            assert torch.equal(pixels, oracle[file])


def test_gray_palette_and_transparent_images_become_three_channels_or_one(tmp_path: Path) -> None:
    write_images(tmp_path, {"b": 3})
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        picture.convert(mode).save(tmp_path / "a" / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}")
    for channels in (1, 3):
        data = of(tmp_path, channels=channels, augment="none", test=0, val=0)
        assert {tuple(image.shape) for image, _ in data.train_set} == {(channels, 16, 16)}  # type: ignore[attr-defined]
        assert len(data.mean) == channels


def test_monitors_find_normalization_and_names(parted: Path) -> None:
    data = of(parted)
    for images in (data.train_set, data.val_set, data.test_set):
        found = find_normalization(images)
        assert found is not None
        assert found.mean == pytest.approx(MEAN)
        assert found.std == pytest.approx(STD)
        assert class_names(images) == ("ant", "bee")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
    reader = IndexReader(loader)
    for _, labels in loader:
        indices = reader.take(len(labels))
        assert [data.targets[index] for index in indices] == labels.tolist()
    assert reader.indices_known


@pytest.mark.parametrize("augment", ["light", "standard", "strong"])
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_augmentation_changes_images_by_seed_and_epoch_alone(name: str, augment: str, parted: Path) -> None:
    where = {"digits": "digits", "folder": parted}[name]
    data = of(where, augment=augment, per_class=6, val=1)
    plain = of(where, augment="none", per_class=6, val=1)
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    images, labels = epoch(data, 1)
    again, labels_again = epoch(of(where, augment=augment, per_class=6, val=1, batch_size=3), 1)
    assert torch.equal(torch.get_rng_state(), state), "torch's random state is the user's"
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert images.shape == epoch(plain, 1)[0].shape
    assert images.isfinite().all()
    assert not torch.equal(images, epoch(plain, 1)[0])
    later, other = epoch(data, 2)[0], epoch(of(where, augment=augment, per_class=6, val=1, seed=5), 1)[0]
    assert not torch.equal(images.sort(0).values, later.sort(0).values)
    assert not torch.equal(images.sort(0).values, other.sort(0).values)
    assert data.val_set is not None
    assert plain.val_set is not None
    assert torch.equal(data.val_set[0][0], plain.val_set[0][0])


def test_images_are_changed_each_in_its_own_way(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 1, "b": 1})
    for name, index in (("a", 1), ("a", 2), ("b", 1)):
        (tmp_path / name / f"{index:03}.png").write_bytes((tmp_path / "a" / "000.png").read_bytes())
    data = of(tmp_path, val=0, test=0, augment="standard")
    alike = [data.train_set[index][0] for index, file in enumerate(files(data.train_set)) if "b/000" not in file]
    assert len(alike) == 4
    assert len({round(float(image.sum()), 3) for image in alike}) == 4


def test_workers_change_nothing_even_those_that_outlive_an_epoch(parted: Path) -> None:
    alone, helped = of(parted, augment="standard"), of(parted, augment="standard", num_workers=2)
    ours, theirs = alone.train_dataloader(), helped.train_dataloader()
    seen = []
    for number in (0, 1):
        for loader in (ours, theirs):
            loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        batches = list(zip(ours, theirs, strict=True))
        assert all(torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) for one, two in batches)
        seen.append(torch.cat([one[0] for one, _ in batches]))
    assert not torch.equal(*seen)


def test_light_is_a_shifted_and_perhaps_mirrored_crop() -> None:
    ramp = torch.arange(32 * 32, dtype=torch.float32).view(1, 32, 32) / 1024
    light = image_transform((28, 28), "light", crop=28 / 32, mean=[0.0], std=[1.0])
    crops = [ramp[:, row : row + 28, column : column + 28] for row in range(5) for column in range(5)]
    allowed = [*crops, *(crop.flip(-1) for crop in crops)]
    drawn = [light(ramp) for _ in range(60)]
    found = [next(place for place, crop in enumerate(allowed) if torch.equal(crop, one)) for one in drawn]
    assert len(set(found)) > 15
    assert min(found) < 25 <= max(found)
    never = image_transform((28, 28), "light", crop=28 / 32, flip=False, mean=[0.0], std=[1.0])
    assert all(any(torch.equal(crop, one) for crop in crops) for one in (never(ramp) for _ in range(30)))


def test_light_leaves_the_ends_of_long_images_out() -> None:
    ramp = torch.arange(96.0).expand(1, 32, 96) / 96
    light = image_transform((28, 28), "light", crop=28 / 32, flip=False, mean=[0.0], std=[1.0])
    starts = {round(float(light(ramp)[0, 0, 0]) * 96) for _ in range(60)}
    assert starts == {32, 33, 34, 35, 36}


def test_of_images_that_fill_the_frame_no_corner_is_taken() -> None:
    small = image_transform((32, 32), "standard", flip=False, least=0.5, mean=[0.0], std=[1.0])
    any_part = image_transform((32, 32), "standard", flip=False, mean=[0.0], std=[1.0])
    ramp = torch.arange(64.0).expand(1, 64, 64).contiguous()

    def widths(transform: Any) -> list[float]:
        return [float(image[0, 0, -1] - image[0, 0, 0]) for image in (transform(ramp) for _ in range(80))]

    # Half of the area at 3:4 is five eighths of the width.
    assert min(widths(small)) > 64 * 0.55 > min(widths(any_part))
    data = ImageFolderDataModule("digits", augment="standard")
    assert data.train_set.transform.transforms[0].scale == (0.5, 1.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong"])
def test_heights_and_widths_may_differ_and_whole_images_be_kept(augment: Any) -> None:
    for size in ((31, 17), (17, 31)):
        for crop in (0.875, 1.0):
            transform = image_transform(size, augment, crop=crop, mean=MEAN, std=STD)
            for shape in ((40, 50), (50, 40), (9, 9), (200, 21)):
                image = torch.full((3, *shape), 200, dtype=torch.uint8)
                assert transform(image).shape == (3, *size)
                if augment == "none":  # nothing is padded
                    assert transform(image).flatten(1).std(1).max() < 1e-5


def test_the_order_is_the_seeds_and_the_epochs(whole: Path) -> None:
    labels = [epoch(of(whole, per_class=6, augment="none", seed=seed), number)[0] for seed, number in ((0, 1), (1, 0))]
    assert not torch.equal(*labels)
    first = epoch(of(whole, per_class=6, augment="none"), 0)[0]
    assert not torch.equal(first, epoch(of(whole, per_class=6, augment="none"), 1)[0])
    assert len(first.flatten(1).unique(dim=0)) == 18


def test_a_last_batch_of_one_is_left_out(whole: Path) -> None:
    for batch_size, count in ((4, 9), (5, 9), (8, 8), (9, 9), (1, 9), (16, 9)):
        data = of(whole, classes=["ant", "bee", "cat"], per_class=3, batch_size=batch_size)
        sizes = [len(labels) for _, labels in data.train_dataloader()]
        assert sum(sizes) == (8 if batch_size in (4, 8) else 9), count
        assert batch_size == 1 or 1 not in sizes


# Data sets


def test_digits_are_the_demos() -> None:
    data = ImageFolderDataModule("digits", augment="none")
    assert (data.num_classes, data.image_shape, data.mean, data.std) == (10, (1, 32, 32), [0.305], [0.33])
    for part, images, count in (
        ("train", data.train_set, 1197),
        ("val", data.val_set, 300),
        ("test", data.test_set, 300),
    ):
        assert images is not None
        assert len(images) == count
        demo = Digits(part)
        assert images.targets == demo.labels.tolist()
        assert all(torch.equal(images[index][0], demo[index][0]) for index in (0, 7, count - 1))
    assert len(load_digits().target) == 1797
    three = ImageFolderDataModule("digits", channels=3, classes=["5", "7"], image_size=40)
    image, label = three.train_set[0]
    assert image.shape == (3, 40, 40)
    assert torch.equal(image[0], image[2])
    assert label in (0, 1)
    assert three.std == [0.33] * 3


@pytest.fixture
def torchvision_root(tmp_path: Path) -> Path:
    """MNIST, CIFAR10-like and EuroSAT files as torchvision writes them, of a few images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = np.tile(labels[:, None, None] * 20, (1, 28, 28)).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes())
    write_images(tmp_path / "eurosat" / "2750", {"River": 6, "Forest": 6}, ".jpg")
    return tmp_path


def test_torchvisions_sets_by_name(torchvision_root: Path) -> None:
    data = ImageFolderDataModule("mnist", root=torchvision_root, image_size=28, val=1, augment="none", channels=1)
    assert data.class_names[3] == "3 - three"
    assert (len(data.train_set), len(data.val_set or []), len(data.test_set or [])) == (30, 10, 20)
    for images in (data.train_set, data.test_set):
        assert images is not None
        for image, label in (images[0], images[7]):
            expected = (torch.tensor(label * 20 / 255) - data.mean[0]) / data.std[0]
            assert torch.allclose(image, expected.expand(1, 28, 28), atol=1e-6)
    assert not any(isinstance(step, v2.RandomHorizontalFlip) for step in data.train_set.transform.transforms)  # type: ignore[attr-defined]
    whole = ImageFolderDataModule("EuroSAT", root=torchvision_root, image_size=16, test=0.5, val=1)
    assert whole.class_names == ["Forest", "River"]
    assert (len(whole.train_set), len(whole.val_set or []), len(whole.test_set or [])) == (4, 2, 6)


def test_a_set_that_is_not_there_names_the_options(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 is not in root='.*give download=True.*or root="):
        ImageFolderDataModule("CIFAR10", root=tmp_path / "nothing")


def test_a_failed_download_names_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 could not be downloaded.*give root="):
        ImageFolderDataModule("CIFAR10", root=tmp_path, download=True)


# Files that are no images


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Three sound images a class; in class a a file cut short, one of text and an empty one; and a list of names."""
    write_images(tmp_path, {"a": 3, "b": 3}, ".jpg", (60, 60))
    sound = (tmp_path / "a" / "000.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(sound[: len(sound) * 3 // 4])
    (tmp_path / "a" / "text.png").write_text("no picture")
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "b" / "names.txt").write_text("000.jpg")
    (tmp_path / "b" / ".DS_Store").write_text("")
    return tmp_path


@pytest.mark.fault(
    "inputs",
    "image files are cut off, empty or hold text",
    "they are named before training begins, with `on_corrupt` as the way out",
)
def test_corrupt_files_are_named_before_training(spoiled: Path) -> None:
    data = of(spoiled, val=0, test=0)
    with pytest.raises(ValueError, match=r"3 files cannot be read as images: .*cut\.jpg \(.*truncated.*on_corrupt"):
        data.setup("fit")


def test_only_what_a_stage_uses_stops_it(spoiled: Path) -> None:
    for name in ("train", "test"):
        (spoiled / name).mkdir()
    for part in ("a", "b"):
        (spoiled / part).rename(spoiled / "test" / part)
    write_images(spoiled / "train", {"a": 4, "b": 4})
    of(spoiled).setup("fit")
    with pytest.raises(ValueError, match="3 files"):
        of(spoiled).setup("test")


@pytest.mark.fault(
    "inputs",
    "image files are cut off, empty or hold text, and `on_corrupt=skip` is set",
    "they are left out and counted, once, and nothing recommends what is set already",
)
def test_corrupt_files_are_skipped_and_counted(spoiled: Path) -> None:
    data = of(spoiled, val=0, test=0, on_corrupt="skip", augment="none")
    assert len(data.train_set) == 9
    with pytest.warns(UserWarning, match=r"3 files cannot be read as images: .*; they are left out") as warned:
        data.setup("fit")
    assert not [each for each in warned if "on_corrupt" in str(each.message)]
    assert Counter(data.targets) == {0: 3, 1: 3}
    assert len(list(data.train_set)) == 6  # type: ignore[call-overload]
    data.setup("test")  # says it once
    assert data._summary().endswith("2 classes, 6 training images (files that are no images, left out: 1 .txt)")


def test_the_next_images_take_the_places_of_corrupt_ones(spoiled: Path) -> None:
    for seed in range(4):
        data = of(spoiled, val=0, test=0, on_corrupt="skip", per_class=3, seed=seed)
        with pytest.warns(UserWarning, match="left out"):
            data.setup("fit")
        assert Counter(data.targets) == {0: 3, 1: 3}
    write_images(spoiled, {"b": 9}, ".png")
    data = of(spoiled, val=1, test=0, on_corrupt="skip", per_class=3)
    with pytest.raises(
        ValueError, match=r"per_class=3: .* has too few training images of a \(2\), after val=1 held out"
    ):
        data.setup("fit")


def test_unchecked_a_corrupt_file_is_named_when_it_is_read(spoiled: Path) -> None:
    data = of(spoiled, val=0, test=0, check=False, per_class=3)
    data.setup("fit")
    place = next(place for place, file in enumerate(files(of(spoiled, val=0, test=0).train_set)) if "cut" in file)
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read as an image"):
        of(spoiled, val=0, test=0).train_set[place]


def test_a_class_with_corrupt_files_alone_is_named(spoiled: Path) -> None:
    for file in (spoiled / "a").glob("0*.jpg"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no images that can be read of 'a'") as caught:
        of(spoiled, val=0, test=0, on_corrupt="skip").setup("fit")
    assert "on_corrupt" not in str(caught.value)


# What is said


def test_bad_folders_are_refused_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", {"": 3})
    write_images(tmp_path / "one", {"a": 3})
    write_images(tmp_path / "nested" / "photos", {"a": 3, "b": 3})
    write_images(tmp_path / "no_train" / "test", {"a": 3, "b": 3})
    write_images(tmp_path / "gap", {"a": 3, "b": 3})
    (tmp_path / "gap" / "c").mkdir()
    (tmp_path / "gap" / "c" / "x.gif").write_bytes(b"")
    write_images(tmp_path / "unlike" / "train", {"a": 3, "b": 3})
    write_images(tmp_path / "unlike" / "test", {"a": 3, "c": 3})
    write_images(tmp_path / "twice" / "train", {"a": 3, "b": 3})
    for name in ("val", "valid"):
        write_images(tmp_path / "twice" / name, {"a": 3, "b": 3})
    (tmp_path / "empty").mkdir()
    for name, match in (
        ("flat", r"has 3 images and no folders: put the images of each class into a folder"),
        ("empty", r"has no folders \(it is empty\)"),
        ("one", r"has one class, 'a'; telling classes apart takes two"),
        ("nested", r"one folder, 'photos', with 2 folders in it; did you mean data='.*nested/photos'"),
        ("no_train", r"has test/ and no train/"),
        ("gap", r"gap has no images of 'c'; .*classes=\[...\] without them \(files that are no images: 1 \.gif\)"),
        ("unlike", r"the (train|test) part of .* has no images of '(b|c)', which another part has"),
        ("twice", r"has both val/ and valid/"),
    ):
        with pytest.raises(ValueError, match=match):
            of(tmp_path / name)
    assert of(tmp_path / "gap", classes=["b", "a"]).num_classes == 2


def test_what_is_not_there_is_looked_for_nearby(tmp_path: Path) -> None:
    write_images(tmp_path / "flowers", {"a": 3, "b": 3})
    with pytest.raises(FileNotFoundError, match=r"no such folder.*Did you mean '.*flowers'"):
        of(tmp_path / "flower")
    with pytest.raises(FileNotFoundError, match="Did you mean 'CIFAR10'"):
        of("CIFAR-10")
    with pytest.raises(FileNotFoundError, match='Give a folder of images, "digits", or one of torchvision\'s CIFAR10'):
        of("zzzzzz")
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        of(tmp_path / "photos.zip")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"per_class": 0}, "per_class=0: give 1 or more"),
        ({"per_class": 9}, r"per_class=9: .* too few training images of bee \(7\), after val=0.1 held out"),
        ({"val": 2.5}, r"val=2.5: give a fraction of each class \(0.1\), a whole number"),
        ({"val": -1}, "val=-1"),
        ({"val": 10}, r"too few training images of ant \(0\), bee \(0\), after val=10"),
        ({"test": 1.5}, "test=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"augment": "much"}, "augment='much': give one of 'none', 'light', 'standard', 'strong'"),
        ({"on_corrupt": "ignore"}, "on_corrupt='ignore'"),
        ({"classes": ["ant", "be"]}, "has no 'be'. Did you mean 'bee'"),
        ({"classes": ["ant", "zz"]}, "has no 'zz'. It has 'ant', 'bee'"),
        ({"classes": ["ant"]}, "give two or more, each once"),
        ({"classes": ["ant", "ant"]}, "each once"),
        ({"channels": 2}, "channels=2"),
        ({"mean": [0.5, 0.5]}, r"mean=\[0.5, 0.5\]: give one value, or 3"),
        ({"std": [0.0]}, "std="),
        ({"crop": 0.0}, "crop=0.0"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_wrong_arguments_are_refused_at_once(parted: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        of(parted, **options)


# With a trainer


class Looker(pl.LightningModule):
    """Learns nothing; keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch[0].clone()))
        loss: Tensor = self.layer(batch[0].mean().view(1, 1)).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        labels: Tensor = batch[1]
        return labels

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "default_root_dir": folder, "enable_checkpointing": False, **options})


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(parted: Path, tmp_path: Path) -> None:
    through, first, second = Looker(), Looker(), Looker()
    trainer(tmp_path, max_epochs=3).fit(through, datamodule=of(parted))
    begun = trainer(tmp_path, max_epochs=2)
    begun.fit(first, datamodule=of(parted))
    begun.save_checkpoint(tmp_path / "half.ckpt")
    torch.rand(7)
    resumed = trainer(tmp_path, max_epochs=3)
    resumed.fit(second, datamodule=of(parted), ckpt_path=str(tmp_path / "half.ckpt"))
    both = [*first.seen, *second.seen]
    assert len(both) == len(through.seen) == 12
    for (one_epoch, one), (two_epoch, two) in zip(through.seen, both, strict=True):
        assert one_epoch == two_epoch
        assert torch.equal(one, two)


def test_every_stage_has_its_images(parted: Path, tmp_path: Path) -> None:
    data, model = of(parted, val=0), Looker()
    runs = trainer(tmp_path, max_epochs=1)
    runs.fit(model, datamodule=data)  # without validation
    runs.test(model, datamodule=data, verbose=False)
    labels = runs.predict(model, datamodule=data)
    assert labels is not None
    assert data.test_set is not None
    assert torch.cat(labels).tolist() == data.test_set.targets  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no validation images: val=0"):
        runs.validate(model, datamodule=data, verbose=False)
    only_train = of(parted / "train", test=0)
    with pytest.raises(ValueError, match=r"has no test images .*; give test=0\.2"):
        runs.test(model, datamodule=only_train, verbose=False)


def test_files_to_predict(parted: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "new", {"": 3, "more": 2})
    data = of(parted, predict=folder)
    assert [Path(file).name for file in files(data.predict_set)] == [
        "000.png",
        "001.png",
        "002.png",
        "000.png",
        "001.png",
    ]
    assert data.predict_set is not None
    assert set(data.predict_set.targets) == {-1}
    assert len(files(of(parted, predict=folder / "000.png").predict_set)) == 1
    with pytest.raises(FileNotFoundError, match="there is no image in"):
        of(parted, predict=tmp_path / "nowhere")


def test_the_data_set_can_be_sent_to_other_processes(parted: Path) -> None:
    for where in ("digits", parted):
        images = of(where, per_class=2, val=1).train_set
        again = pickle.loads(pickle.dumps(images))
        assert torch.equal(again[0][0], images[0][0])
        assert again.targets == images.targets
    assert isinstance(of(parted).val_dataloader(), DataLoader)
