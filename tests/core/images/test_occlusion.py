"""Occlusion: against a plain loop over positions, by what a linear model must give, and without trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet.projection import Unit, project
from lightning_cnnviz.core.images.occlusion import OcclusionMaps, check_occlusion, occlude, occluder_boxes

MAPS = ("channels", "untouched_activations", "activations", "probabilities", "predictions")


def network() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(5 * 5 * 7, 4),
    )
    nn.init.normal_(model[7].weight, std=0.5)  # type: ignore[arg-type]
    return model


def images_of(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_maps_are_those_of_a_plain_loop() -> None:
    model, images, labels = network(), images_of(), torch.tensor([3, 0, 2])
    fill = torch.tensor([0.1, 0.5, 0.9])
    found = occlude(model, images, labels, size=(5, 4), stride=(4, 3), fill=fill)
    assert (found.layer, found.size, found.image_size) == ("4", (5, 4), (12, 16))
    tops, lefts = [0, 4, 8], [0, 3, 6, 9, 12]
    assert tuple(found.boxes.shape) == (3, 5, 4)
    model.eval()
    for number, image in enumerate(images):
        sums = model[:5](image[None]).sum((2, 3))[0]
        channel = int(sums.argmax())
        assert int(found.channels[number]) == channel
        assert float(found.untouched_activations[number]) == pytest.approx(float(sums[channel]), rel=1e-5)
        for row, top in enumerate(tops):
            for column, left in enumerate(lefts):
                covered = image.clone()
                covered[:, top : top + 5, left : left + 4] = fill.view(3, 1, 1)
                assert found.boxes[row, column].tolist() == [top, left, min(top + 5, 12), min(left + 4, 16)]
                p = model(covered[None]).softmax(1)[0]
                activation = float(model[:5](covered[None])[0, channel].sum())
                assert float(found.activations[number, row, column]) == pytest.approx(activation, rel=1e-4, abs=1e-5)
                assert float(found.probabilities[number, row, column]) == pytest.approx(
                    float(p[labels[number]]), abs=1e-5
                )
                assert int(found.predictions[number, row, column]) == int(p.argmax())


@torch.no_grad()
def test_a_layer_before_its_nonlinearity_counts_what_is_above_zero() -> None:
    model, images = network(), images_of(2) - 0.5
    found = occlude(model, images, layer="0", size=6, stride=6, fill=0.5)
    for number, image in enumerate(images):
        maps = model[:1](image[None])[0]
        assert float(maps.amin()) < 0 < float(maps.amax())
        sums = maps.clamp(min=0).sum((1, 2))
        assert int(found.channels[number]) == int(sums.argmax())
        covered = image.clone()
        covered[:, 6:, 6:12] = 0.5
        expected = float(model[:1](covered[None])[0, int(sums.argmax())].clamp(min=0).sum())
        assert float(found.activations[number, 1, 1]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(3, 3), (4, 2), ((5, 7), (5, 3)), (12, 12)])
def test_a_linear_model_gives_block_sums_of_weight_times_what_is_covered(size: Any, stride: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten(), nn.Linear(12 * 16, 2))
    nn.init.constant_(model[0].weight, 1.0)  # type: ignore[arg-type]
    images, fill = images_of(), torch.tensor([0.2, 0.4, 0.6])
    found = occlude(model, images, torch.zeros(3, dtype=torch.int64), "0", size=size, stride=stride, fill=fill)
    covered = (images - fill.view(3, 1, 1)).sum(1).double()
    weight = (model[2].weight[0] - model[2].weight[1]).detach().view(12, 16).double()
    # Of two classes, the log-odds of the first are the difference of the logits.
    drops = found.untouched.probabilities.double().logit()[:, None, None] - found.probabilities.double().logit()
    lost = found.untouched_activations[:, None, None] - found.activations
    for place, (top, left, bottom, right) in enumerate(found.boxes.view(-1, 4).tolist()):
        block = (slice(None), slice(top, bottom), slice(left, right))
        torch.testing.assert_close(
            drops.flatten(1)[:, place], (weight * covered)[block].sum((1, 2)), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(lost.flatten(1)[:, place].double(), covered[block].sum((1, 2)), atol=1e-3, rtol=1e-4)


def test_an_occluder_of_what_it_covers_changes_nothing() -> None:
    model, images = network(), images_of(1) * 0 + 0.25
    found = occlude(model, images, size=4, stride=4, fill=0.25)
    torch.testing.assert_close(found.probabilities, found.untouched.probabilities.view(1, 1, 1).expand(1, 3, 4))
    torch.testing.assert_close(found.activations, found.untouched_activations.view(1, 1, 1).expand(1, 3, 4))
    assert bool((found.predictions == found.untouched.predictions).all())


@torch.no_grad()
def test_by_default_it_is_gray_and_in_proportion_to_the_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    images = torch.rand(1, 1, 224, 224)
    found = occlude(model, images, batch_size=64)
    assert found.size == (50, 50)
    assert tuple(found.boxes.shape) == (12, 12, 4)
    assert found.boxes[1, 2].tolist() == [16, 32, 66, 82]
    covered = images.clone()
    covered[..., 16:66, 32:82] = images.mean()
    expected = model(covered).softmax(1)[0, int(found.untouched.targets[0])]
    assert float(found.probabilities[0, 1, 2]) == pytest.approx(float(expected), abs=1e-6)
    small = occlude(model, images[..., :28, :28])
    assert (small.size, small.boxes[1, 1, :2].tolist()) == ((6, 6), [2, 2])


@given(st.data())
def test_every_pixel_is_covered_and_every_position_adds_some(data: st.DataObject) -> None:
    image = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    size = tuple(data.draw(st.integers(1, whole)) for whole in image)
    stride = tuple(data.draw(st.integers(1, part)) for part in size)
    boxes = occluder_boxes(image, (size[0], size[1]), (stride[0], stride[1]))
    covered = torch.zeros(image, dtype=torch.bool)
    for top, left, bottom, right in boxes.view(-1, 4).tolist():
        assert 0 <= top < bottom <= min(image[0], top + size[0])
        assert 0 <= left < right <= min(image[1], left + size[1])
        covered[top:bottom, left:right] = True
    assert bool(covered.all())
    assert len({tuple(box) for box in boxes.view(-1, 4).tolist()}) == boxes.shape[0] * boxes.shape[1]
    for row in boxes.tolist():
        assert len(row) == 1 or row[-2][3] < image[1]  # the last position covers what no other does


def test_the_strongest_map_is_projected_from_its_strongest_unit() -> None:
    model, images = network(), images_of()
    found = occlude(model, images, size=6, stride=6)
    units = [Unit(number, "4", int(channel)) for number, channel in enumerate(found.channels)]
    expected = project(model, images, units)
    assert found.unprojected == ""
    for number, projection in enumerate(found.projections):
        assert torch.equal(projection, expected.on_image(number))
        assert float(projection.abs().max()) > 0


def test_a_network_that_cannot_be_projected_says_why_and_has_the_other_maps() -> None:
    body = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = occlude(model, images_of(), size=6, stride=6)
    assert found.projections == ()
    assert "there is no ReLU or similar nonlinearity to rectify at" in found.unprojected
    assert bool((found.activations != found.untouched_activations[:, None, None]).any())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_size_of_batches_does_not_matter(batch_size: int) -> None:
    model, images = network(), images_of()
    expected = occlude(model, images, size=5, stride=3, batch_size=4)
    found = occlude(model, images, size=5, stride=3, batch_size=batch_size)
    for name in MAPS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_shares_of_two_ranks_are_the_whole() -> None:
    model, images, labels = network(), images_of(5), torch.tensor([3, 0, 2, 1, 1])
    options: dict[str, Any] = {"size": 5, "stride": 4, "fill": 0.5}
    whole = occlude(model, images, labels, **options)
    joined = OcclusionMaps.joined([occlude(model, images[rank::2], labels[rank::2], **options) for rank in range(2)])
    for name in MAPS:
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
    assert torch.equal(joined.untouched.targets, labels)
    torch.testing.assert_close(joined.projections, whole.projections)


def test_a_single_position_and_a_network_of_probabilities() -> None:
    model, images = nn.Sequential(*network(), nn.Softmax(1)), images_of()
    found = occlude(model, images, size=(12, 16), stride=1, fill=0.3)
    assert tuple(found.probabilities.shape) == (3, 1, 1)
    model.eval()
    blank = model(torch.full_like(images[:1], 0.3))[0]
    torch.testing.assert_close(found.probabilities[:, 0, 0], blank[found.untouched.targets].detach())


def test_progress_is_shown_over_images() -> None:
    seen: list[Any] = []

    def progress(work: Iterable[Any]) -> Iterable[Any]:
        seen.extend(work)
        return list(seen)

    occlude(network(), images_of(), size=12, stride=12, progress=progress)
    assert len(seen) == 3


@pytest.mark.parametrize("check", [False, True], ids=["occlude", "check"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": 13}, r"size=\(13, 13\): the occluder \(height, width\) has to be between 1 and the images' 12 x 16"),
        ({"size": (4, 17)}, r"size=\(4, 17\): the occluder"),
        ({"size": 0}, r"size=\(0, 0\)"),
        ({"stride": 17}, r"stride=\(17, 17\): the step \(down, right\) has to be between 1 and the images' 12 x 16"),
        ({"stride": 0}, r"stride=\(0, 0\)"),
        ({"size": 4, "stride": 5}, r"stride=\(5, 5\) is larger than the occluder, size=\(4, 4\): parts of the image"),
        ({"labels": torch.tensor([0, 4, 1])}, r"labels \[4\] are out of range: the network has 4 classes"),
        ({"images": torch.rand(3, 3, 2, 2)}, r"Sequential does not take images of shape \(3, 2, 2\)"),
        ({"images": torch.rand(3, 12, 16)}, r"give one or more as a float or uint8 tensor \(N, C, H, W\)"),
        (
            {"model": nn.Sequential(nn.Conv2d(3, 4, 3))},
            r"returns, for 3 images, a tensor of shape .*: a score for each pixel",
        ),
        ({"layer": "features.9"}, "no layer of Sequential matches 'features.9'"),
        ({"layer": "conv"}, "means 2 layers"),
        ({"layer": "7"}, "layer '7' has features of shape"),
    ],
)
def test_what_cannot_be_occluded_says_so(change: dict[str, Any], match: str, check: bool) -> None:
    given_: dict[str, Any] = {"model": network(), "images": images_of(), "labels": torch.tensor([0, 1, 2]), **change}
    with pytest.raises(ValueError, match=match):
        (check_occlusion if check else occlude)(**given_)


def test_a_fill_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fill has 2 values, but the images have 3 channels"):
        occlude(network(), images_of(), fill=[0.0, 1.0])


def test_maps_of_shapes_that_do_not_fit_are_refused() -> None:
    found = occlude(network(), images_of(), size=6, stride=6)
    with pytest.raises(ValueError, match="maps of 3 images at"):
        OcclusionMaps(**{**vars(found), "activations": found.activations[:, 1:]})


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(fails: bool) -> None:
    model, images = network().train(), images_of()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[arg-type]
    before, kept, chance = {k: v.clone() for k, v in model.state_dict().items()}, images.clone(), torch.get_rng_state()
    calls: list[int] = []

    def breaks(_module: nn.Module, inputs: Any) -> None:
        calls.append(len(inputs[0]))
        if fails and len(calls) > 6:
            raise RuntimeError("the user's own mistake")

    handle = model[0].register_forward_pre_hook(breaks)
    if fails:
        with pytest.raises(ValueError, match="the user's own mistake"):
            occlude(model, images, size=4, stride=2)
    else:
        occlude(model, images, size=4, stride=2)
    handle.remove()
    assert torch.equal(chance, torch.get_rng_state())
    assert torch.equal(images, kept)
    assert not images.requires_grad
    assert [module.training for module in model] == [True, False, *[True] * 6]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))  # type: ignore[arg-type]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
