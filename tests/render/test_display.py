"""How people see a view's images: files and class names through the data sets that wrap others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from lightning_cnnviz.render.display import Display, class_names, file_names, readable_names
from lightning_cnnviz.render.normalization import Normalization


class Folder(torch.utils.data.Dataset[Any]):
    """As torchvision's ImageFolder."""

    def __init__(self, *names: str, classes: Any = ("ant", "bee")) -> None:
        self.samples = [(name, 0) for name in names]
        self.classes = classes

    def __len__(self) -> int:
        return len(self.samples)


FOLDER, OTHER = Folder("a.png", "b.png", "c.png"), Folder("d.png")


@pytest.mark.parametrize(
    ("dataset", "indices", "expected"),
    [
        (FOLDER, [2, 0, 2], {2: "c.png", 0: "a.png"}),
        (Subset(FOLDER, [1, 2]), [0, 1], {0: "b.png", 1: "c.png"}),
        (ConcatDataset([FOLDER, OTHER]), [2, 3], {2: "c.png", 3: "d.png"}),
        (ConcatDataset([Subset(FOLDER, [2]), OTHER]), [0, 1, 2], {0: "c.png", 1: "d.png"}),
        (SimpleNamespace(files=[Path("x/y.png")]), [0, 1], {0: str(Path("x/y.png"))}),
        (SimpleNamespace(files=None), [0], {}),
        (SimpleNamespace(samples=[3, 4]), [0], {}),
        (FOLDER, [-1, 7], {}),
        (Subset(FOLDER, [1]), [4], {}),
        (None, [0], {}),
    ],
)
def test_files_of_images(dataset: Any, indices: list[int], expected: dict[int, str]) -> None:
    assert file_names(dataset, indices) == expected


def test_a_list_that_is_made_at_each_asking_is_asked_for_once() -> None:
    asked = []

    class Images:
        @property
        def files(self) -> list[str]:
            asked.append(1)
            return ["a", "b", "c"]

    assert file_names(Images(), [0, 1, 2]) == {0: "a", 1: "b", 2: "c"}
    assert len(asked) == 1


def test_names_of_classes() -> None:
    assert class_names(Subset(Folder("a", classes=["x", "y"]), [0])) == ("x", "y")
    assert class_names(Folder("a", classes={"x": 0, "y": 1})) == ("x", "y")
    assert class_names(Folder("a", classes=[1, 2])) is None
    assert class_names(None) is None


def test_a_folder_of_imagenet_is_called_by_its_word_and_others_as_they_are() -> None:
    names = ("n02483708_siamang", "n01484850_great_white_shark", "n0148_few", "my_class", "n01443537_", "")
    expected = ("siamang", "great white shark", "n0148_few", "my_class", "n01443537_", "")
    assert Display(class_names=names).class_names == expected
    assert readable_names(expected) == expected
    assert Display().class_names is None


def test_classes_of_one_word_are_told_apart() -> None:
    assert readable_names(("n03710637_maillot", "n03710721_maillot", "maillot")) == (
        "maillot (n03710637)",
        "maillot (n03710721)",
        "maillot",
    )


def test_the_fill_is_a_color() -> None:
    shown = Display(normalization=Normalization((0.5,), (0.25,)), fill=torch.zeros(3))
    assert shown.fill_pixel is not None
    assert shown.fill_pixel.tolist() == [128, 128, 128]
    assert shown.mean_and_std == ((0.5,), (0.25,))
    assert Display().fill_pixel is None
