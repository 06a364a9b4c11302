from __future__ import annotations

import pytest
import torch

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.probing.image_splits import draw_image_splits
from lightning_cnnviz.core.probing.protocols import Protocol


def test_all_rows_of_an_image_are_on_one_side() -> None:
    images = torch.arange(20).repeat_interleave(3)[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    manifest = draw_image_splits(images, Protocol(splits=2))
    for split in manifest.splits:
        sides = [set(images[part].tolist()) for part in (split.fit, split.held_out, split.test)]
        assert [len(side) for side in sides] == [13, 3, 4]
        assert len(set.union(*sides)) == 20
        assert torch.equal(torch.cat([split.fit, split.held_out]).sort().values, split.train)
    assert not torch.equal(manifest.splits[0].test, manifest.splits[1].test)
    assert manifest.digest == draw_image_splits(images, Protocol(splits=2)).digest
    assert manifest.digest != draw_image_splits(images, Protocol(splits=2, seed=1)).digest


def test_with_a_test_set_of_its_own_all_is_learned_and_tested() -> None:
    (split,) = draw_image_splits(torch.arange(10), Protocol(splits=1), test_images=torch.arange(4)).splits
    assert (len(split.train), split.test.tolist()) == (10, [0, 1, 2, 3])


def test_what_counts_classes_and_what_is_too_little_is_refused() -> None:
    with pytest.raises(WrongArgumentError, match="has per_class=5, but no image has one class"):
        draw_image_splits(torch.arange(10), Protocol(per_class=5))
    with pytest.raises(ValueError, match="needs 3 or more images, but there are 2"):
        draw_image_splits(torch.tensor([0, 0, 1]), Protocol())
