from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_cnnviz.core.probing.features import Features, LayerFeatures, first_of_each, merge_features


def layer(values: Tensor, name: str = "conv") -> LayerFeatures:
    return LayerFeatures(layer=name, values=values, shape=(values.shape[1], 1, 1), pooled=(1, 1), images=len(values))


def features(indices: list[int], name: str = "conv", *, known: bool = True) -> Features:
    numbers = torch.tensor(indices)
    values = torch.stack([numbers, -numbers], 1).float()
    return Features(layers=(layer(values, name),), labels=numbers % 3, indices=numbers, indices_known=known)


def test_merged_images_are_in_order_and_come_once() -> None:
    merged = merge_features([features([4, 0]), features([2, 4, 9], known=False)])
    assert merged.indices.tolist() == [0, 2, 4, 9]
    assert merged.labels.tolist() == [0, 2, 1, 0]
    assert merged["conv"].dense()[:, 1].tolist() == [0, -2, -4, -9]
    assert not merged.indices_known
    whole = features([1, 2])
    assert merge_features([whole, features([])]) is whole


def test_parts_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no part has an image"):
        merge_features([features([])])
    with pytest.raises(ValueError, match="features of different layers"):
        merge_features([features([1]), features([2], "other")])
    file = tmp_path / "conv.f32"
    file.write_bytes(b"")
    on_disk = LayerFeatures(layer="conv", values=None, shape=(2, 1, 1), pooled=(1, 1), images=2, file=file)
    numbers = torch.tensor([1, 0])
    with pytest.raises(ValueError, match=r"features on disk .* are read in the order of the data set"):
        merge_features([Features(layers=(on_disk,), labels=numbers, indices=numbers)])
    with pytest.raises(ValueError, match="ends before image 0"):
        on_disk.dense()


def test_chosen_images_are_kept() -> None:
    some = features([1, 5, 7]).among(torch.tensor([7, 1, 30]))
    assert some.indices.tolist() == [1, 7]
    assert some["conv"].dense()[:, 0].tolist() == [1, 7]
    assert some["conv"].images == 2


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"features of layer 'conv' are \(3, 2\), not \(3, 4\)"):
        LayerFeatures(layer="conv", values=torch.rand(3, 2), shape=(4, 1, 1), pooled=(1, 1), images=3)
    with pytest.raises(ValueError, match="lie in memory or in a file"):
        LayerFeatures(layer="conv", values=None, shape=(4, 1, 1), pooled=(1, 1), images=3)
    with pytest.raises(KeyError, match="no features of layer 'other'"):
        features([1])["other"]


def test_the_first_of_equal_indices() -> None:
    assert first_of_each(torch.tensor([5, 5, 1, 5, 1])).tolist() == [2, 0]
