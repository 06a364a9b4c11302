"""Networks of several heads: which are found, with their own labels, and how ranks' parts are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.calling import GivenBatch
from lightning_cnnviz.core.network.heads import ByHead, find_heads, join_by_head

IMAGES, LABELS = torch.rand(3, 1, 4, 4), torch.tensor([2, 0, 1])
SCORES = torch.rand(3, 2)


class Says(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ({"species": SCORES, "sex": SCORES[:, 0]}, ["species", "sex"]),
        ({"species": SCORES, "sex": SCORES, "embedding": torch.rand(3, 9)}, ["species", "sex"]),
        ({"logits": SCORES, "sex": SCORES}, [""]),
        ({"species": SCORES, "embedding": SCORES}, [""]),
        ({"species": SCORES, "maps": torch.rand(3, 2, 4, 4)}, [""]),
        ((SCORES, SCORES), [""]),  # which of them are features, nobody knows
        (SCORES, [""]),
    ],
)
def test_heads_are_named_scores(output: Any, names: list[str]) -> None:
    found = find_heads(Says(output), IMAGES, LABELS)
    assert [head.name for head in found] == names
    for head in found:
        if head.output_fn is not None:
            assert head.output_fn(output) is output[head.name]
            assert head.labels is None
        else:
            assert head.labels is LABELS


def test_labels_of_a_head_are_those_of_its_name() -> None:
    batch = (IMAGES, {"species": LABELS, "other": {"sex": torch.tensor(1)}})
    heads = find_heads(Says({"species": SCORES, "sex": SCORES}), IMAGES, None, GivenBatch.of(batch, IMAGES))
    assert heads[0].labels is LABELS
    assert heads[1].labels is None  # a single number for three images


def test_parts_of_ranks_are_joined_head_by_head() -> None:
    def join(parts: Any) -> int:
        return int(sum(parts))

    assert join_by_head([1, 2], join) == 3
    parts = [ByHead(names=("a", "b"), results=(1, 10)), ByHead(names=("a", "b"), results=(2, 20))]
    joined = join_by_head(parts, join)
    assert (joined.names, joined.results) == (("a", "b"), (3, 30))
    with pytest.raises(ValueError, match="and 1 results"):
        ByHead(names=("a", "b"), results=(1,))
