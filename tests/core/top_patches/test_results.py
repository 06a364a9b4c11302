"""Results of mining: parts that do not fit together are refused, and a wide result holds every narrower one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches


def layer_result() -> LayerTopPatches:
    """Two feature maps with three units each; the patches of the second are kept."""
    boxes = torch.tensor([[0, 0, 2, 3], [1, 1, 4, 4], [0, 2, 1, 4]]).expand(2, 3, 4).clone()
    return LayerTopPatches(
        layer="a",
        scores=torch.tensor([[3.0, 2, 1], [6, 5, 4]]),
        activations=torch.tensor([[9.0, 8, 7], [6, 5, 4]]),
        images=torch.tensor([[4, 5, 6], [7, 8, 9]]),
        labels=torch.tensor([[0, 1, 0], [1, 0, 1]]),
        rows=torch.zeros(2, 3, dtype=torch.int64),
        columns=torch.ones(2, 3, dtype=torch.int64),
        boxes=boxes,
        maxima=torch.tensor([9.5, 0.0]),
        features=(1,),
        patches=((torch.rand(3, 2, 3), torch.rand(3, 3, 3), torch.rand(3, 1, 2)),),
    )


@pytest.mark.parametrize("name", ["activations", "images", "labels", "rows", "columns", "boxes", "maxima"])
def test_a_tensor_of_another_shape_is_refused_by_name(name: str) -> None:
    layer = layer_result()
    with pytest.raises(ValueError, match=rf"layer 'a': {name} must be \(2.*to fit scores \(2, 3\), not \(1"):
        replace(layer, **{name: getattr(layer, name)[:1]})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scores": torch.zeros(3)}, r"scores must be \(C, k\), not \(3,\)"),
        ({"features": (0, 1)}, "1 lists of patches for 2 features"),
        ({"features": (2,)}, "feature 2 of 2"),
        ({"patches": ((torch.rand(3, 2, 2),),)}, r"feature 1: a patch \(3, 2, 2\) does not fit box \(0, 0, 2, 3\)"),
        ({"patches": ((torch.rand(3, 2, 3),) * 4,)}, "feature 1: 4 patches of 3 units"),
    ],
)
def test_patches_that_do_not_fit_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(layer_result(), **changes)


def test_parts_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        TopPatches((layer_result(),), 3)  # type: ignore[misc]


def test_dead_is_what_was_never_above_zero_whatever_ranks() -> None:
    assert layer_result().dead.tolist() == [False, True]
    assert replace(layer_result(), scores=-torch.ones(2, 3)).dead.tolist() == [False, True]
    assert replace(layer_result(), maxima=torch.full((2,), -torch.inf)).dead.tolist() == [True, True]


def test_narrowed_has_fewer_layers_units_and_patches() -> None:
    whole = TopPatches(layers=(layer_result(), replace(layer_result(), layer="b")), k=3, indices_known=False)
    narrow = whole.narrowed(["b"], 2, None)
    (layer,) = narrow
    assert (layer.layer, narrow.k, narrow.indices_known) == ("b", 2, False)
    for name in ("scores", "activations", "images", "labels", "rows", "columns", "boxes"):
        assert torch.equal(getattr(layer, name), getattr(whole["b"], name)[:, :2]), name
    assert torch.equal(layer.maxima, whole["b"].maxima)
    assert [len(patches) for patches in layer.patches] == [2]
    assert torch.equal(layer.patch(1, 1), whole["b"].patch(1, 1))
    assert whole.narrowed(["a"], 9, [0])["a"].features == ()
    assert whole.narrowed(["a"], 9, [0]).k == 3


def test_what_is_not_there_is_told() -> None:
    whole = TopPatches(layers=(layer_result(),), k=3)
    with pytest.raises(KeyError, match=r"no layer 'b'; there are \['a'\]"):
        whole["b"]
    with pytest.raises(KeyError, match="has no patch 0 of feature 0"):
        whole["a"].patch(0)
    with pytest.raises(KeyError, match="has no patch 3 of feature 1"):
        whole["a"].patch(1, 3)
