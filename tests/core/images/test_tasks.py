"""Views of what a network says, for each kind of output: against plain computations on small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.images.attribution import attribute, check_attribution
from lightning_cnnviz.core.images.invariance import check_invariance, measure_invariance
from lightning_cnnviz.core.images.occlusion import check_occlusion, occlude
from lightning_cnnviz.core.images.transforms import TRANSFORMS
from lightning_cnnviz.show import show

SIZE = 12
LABELS = torch.tensor([2, 0, 1])
SEVERAL = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])


class Ends(nn.Module):
    """A small network of three scores, and what is made of them."""

    def __init__(self, end: Callable[[Tensor], Any], scores: int = 3, *, dense: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())
        self.head: nn.Module = nn.Conv2d(5, scores, 1) if dense else nn.Linear(5 * SIZE * SIZE, scores)
        self.dense, self.end = dense, end
        nn.init.normal_(self.head.weight, std=1.0 if dense else 0.2)  # type: ignore[arg-type]

    def scores(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        scores: Tensor = self.head(maps if self.dense else maps.flatten(1))
        return scores

    def forward(self, images: Tensor) -> Any:
        return self.end(self.scores(images))


def as_it_is(scores: Tensor) -> Tensor:
    return scores


def images_of() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def softmax_of_labels(model: Ends, images: Tensor) -> Tensor:
    return model.scores(images).softmax(1)


def sigmoid_of_labels(model: Ends, images: Tensor) -> Tensor:
    return model.scores(images).sigmoid()


def both_of_one(model: Ends, images: Tensor) -> Tensor:
    yes = model.scores(images).sigmoid()
    return torch.cat([1 - yes, yes], 1)


def value(model: Ends, images: Tensor) -> Tensor:
    return model.scores(images)


Case = tuple[Ends, Tensor | None, dict[str, Any], Callable[[Ends, Tensor], Tensor], list[int]]


def cases() -> dict[str, Case]:
    """By name: network, labels, options, its probabilities `(N, classes)`, and each image's class."""

    def first(output: Any) -> Any:
        return output["species"]

    heads = Ends(lambda s: {"species": s, "sex": s[:, :2]})
    told = {"task": "multilabel", "output_fn": first}
    rows = Ends(as_it_is).scores(images_of()).tolist()
    several = [
        max(row.nonzero().flatten().tolist(), key=lambda n, p=p: p[n]) for row, p in zip(SEVERAL, rows, strict=True)
    ]
    return {
        "softmax": (Ends(lambda s: s.softmax(1)), LABELS, {}, softmax_of_labels, LABELS.tolist()),
        "log_softmax": (Ends(lambda s: s.log_softmax(1)), LABELS, {}, softmax_of_labels, LABELS.tolist()),
        "sigmoids": (Ends(torch.sigmoid), LABELS, {}, sigmoid_of_labels, LABELS.tolist()),
        "sigmoids of several": (Ends(torch.sigmoid), SEVERAL, {}, sigmoid_of_labels, several),
        "several": (Ends(as_it_is), SEVERAL, {}, sigmoid_of_labels, several),
        "mapping": (Ends(lambda s: {"logits": s, "features": s}), LABELS, {}, softmax_of_labels, LABELS.tolist()),
        "told": (heads, SEVERAL, told, sigmoid_of_labels, several),
        "told alone": (heads, LABELS, {"output_fn": first}, softmax_of_labels, LABELS.tolist()),
        "one logit": (Ends(as_it_is, 1), LABELS.clamp(max=1), {}, both_of_one, [1, 0, 1]),
        "flat logit": (Ends(lambda s: s[:, 0], 1), LABELS.clamp(max=1).float(), {}, both_of_one, [1, 0, 1]),
        "one sigmoid": (Ends(torch.sigmoid, 1), LABELS.clamp(max=1), {}, both_of_one, [1, 0, 1]),
        "value": (Ends(as_it_is, 1), torch.tensor([3.5, 2.0, 8.0]), {}, value, [0, 0, 0]),
    }


NAMES = list(cases())


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_occlusion_follows_what_the_network_says_of_the_label(name: str) -> None:
    model, labels, options, plain, targets = cases()[name]
    images = images_of()
    found = occlude(model, images, labels, "body.3", size=6, stride=6, fill=0.25, **options)
    assert found.untouched.targets.tolist() == targets
    assert check_occlusion(model, images, labels, "body.3", size=6, stride=6, **options) == found.untouched.task
    torch.testing.assert_close(found.untouched.probabilities, plain(model, images)[range(3), targets])
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        covered = images.clone()
        covered[:, :, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] = 0.25
        expected = plain(model, covered)
        torch.testing.assert_close(found.probabilities[:, row, column], expected[range(3), targets])
        assert torch.equal(found.predictions[:, row, column], expected.argmax(1))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_invariance_follows_what_the_network_says_of_the_label(name: str) -> None:
    model, labels, options, plain, targets = cases()[name]
    images = images_of()
    found = measure_invariance(model, images, labels, "body.3", "brightness", **options)
    assert check_invariance(model, images, labels, "body.3", "brightness", **options) == found.untouched.task
    (sweep,) = found.sweeps
    transform = TRANSFORMS["brightness"]((SIZE, SIZE), [0.0] * 3)
    for place in (0, len(sweep.values) - 1):
        expected = plain(model, transform.apply(images.clone(), transform.values[place]))
        torch.testing.assert_close(sweep.probabilities[:, place], expected[range(3), targets], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_attribution_is_of_the_score_that_the_network_returns(name: str) -> None:
    model, labels, options, _, targets = cases()[name]
    images = images_of()
    found = attribute(model, images, labels, "saliency", **options)
    assert check_attribution(model, images, labels, "saliency", **options) == found.untouched.task
    own = images.clone().requires_grad_()
    returned = model(own)
    scores = returned if isinstance(returned, Tensor) else next(iter(returned.values()))
    scores = scores.view(3, -1)
    if scores.shape[1] == 1 and name != "value":
        scores = torch.cat([-scores, scores], 1)  # of the two classes, each counts up or down
    (expected,) = torch.autograd.grad(scores[range(3), targets].sum(), own)
    torch.testing.assert_close(found.maps, expected.abs())


# A class for each pixel


def label_maps() -> Tensor:
    maps = torch.zeros(3, SIZE, SIZE, dtype=torch.int64)
    maps[0, 2:6, 3:9], maps[1, :4, :4], maps[1, 8:, 8:], maps[2, 5:, :2] = 2, 1, 2, 1
    maps[1, 8, 8] = 255
    return maps


TARGETS = [2, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("shape", ["maps", "out", "probabilities"])
def test_segmentation_is_followed_over_the_pixels_of_a_class(shape: str) -> None:
    ends = {"maps": as_it_is, "out": lambda s: {"out": s, "aux": s + 1}, "probabilities": lambda s: s.softmax(1)}
    model, images, labels = Ends(ends[shape], dense=True), images_of(), label_maps()
    found = occlude(model, images, labels, "body.3", size=6, stride=6, fill=0.25)
    assert found.untouched.task.kind == "segmentation"
    assert found.untouched.targets.tolist() == TARGETS
    covered = images.clone()
    covered[:, :, :6, 6:] = 0.25
    for given, p in ((images, found.untouched.probabilities), (covered, found.probabilities[:, 0, 1])):
        by_pixel = model.scores(given).softmax(1)
        for number, target in enumerate(TARGETS):
            if given is images:
                assert found.untouched.pixel_probabilities is not None
                torch.testing.assert_close(found.untouched.pixel_probabilities[number], by_pixel[number, target])
            expected = by_pixel[number][:, labels[number] == target].mean(1)
            assert float(p[number]) == pytest.approx(float(expected[target]), abs=1e-6)
    by_pixel = model.scores(covered).softmax(1)
    for number, target in enumerate(TARGETS):
        inside = by_pixel[number][:, labels[number] == target].mean(1)
        assert int(found.predictions[number, 0, 1]) == int(inside.argmax())


@torch.no_grad()
def test_the_pixels_of_a_class_move_with_the_image() -> None:
    model, images, labels = Ends(as_it_is, dense=True), images_of(), label_maps()
    found = measure_invariance(model, images, labels, "body.3", ["translation", "brightness"], fill=0.25)
    moved, brighter = found.sweeps
    for place in (1, len(moved.values) - 2):
        down = int(moved.values[place])
        copy, regions = torch.full_like(images, 0.25), torch.zeros_like(labels)
        into, out = slice(max(0, down), SIZE + min(0, down)), slice(max(0, -down), SIZE - max(0, down))
        copy[:, :, into], regions[:, into] = images[:, :, out], labels[:, out]
        by_pixel = model.scores(copy).softmax(1)
        for number, target in enumerate(TARGETS):
            inside = regions[number] == target
            expected = float(by_pixel[number, target][inside].mean()) if bool(inside.any()) else 0.0
            assert float(moved.probabilities[number, place]) == pytest.approx(expected, abs=1e-5)
    by_pixel = model.scores(images * 0 + images).softmax(1)
    identity = brighter.values.tolist().index(brighter.identity)
    for number, target in enumerate(TARGETS):
        expected = float(by_pixel[number, target][labels[number] == target].mean())
        assert float(brighter.probabilities[number, identity]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "gradcam", "guided_gradcam"])
def test_attribution_of_a_class_of_pixels_is_of_its_mean_score(method: Any) -> None:
    model, images, labels = Ends(as_it_is, dense=True), images_of(), label_maps()
    found = attribute(model, images, labels, method, layer="body.3" if "gradcam" in method else None, baseline=0.0)
    for number, target in enumerate(TARGETS):
        inside = labels[number] == target

        def plain(given: Tensor, target: int = target, inside: Tensor = inside) -> Tensor:
            return model.scores(given)[:, target, inside].mean(1)

        own = images[number : number + 1].clone().requires_grad_()
        if method == "saliency":
            (expected,) = torch.autograd.grad(plain(own).sum(), own)
            torch.testing.assert_close(found.maps[number], expected[0].abs())
        if method == "integrated_gradients":
            whole = float((plain(own) - plain(own * 0)).detach())
            assert float(found.maps[number].sum()) == pytest.approx(whole, rel=1e-2, abs=1e-3)
        if method == "gradcam":
            maps = model.body(own)
            slopes = torch.autograd.grad(model.head(maps)[0, target, inside].mean(), maps)[0].mean((2, 3))
            expected = (maps * slopes[..., None, None]).sum(1).relu()
            torch.testing.assert_close(found.maps[number], expected.detach())
        if method == "guided_gradcam":
            # The same network with that mean as a class score.
            wrapped = Ends(lambda s, inside=inside: s[:, :, inside].mean(2), dense=True)
            single = attribute(wrapped, own.detach(), torch.tensor([target]), method, layer="body.3", baseline=0.0)
            torch.testing.assert_close(found.maps[number], single.maps[0])
    assert bool(found.maps.ne(0).any())


FOLLOWED = {0: [0, 1, 2], 1: [1, 2], 2: [0, 1]}


@torch.no_grad()
@pytest.mark.parametrize("follow", FOLLOWED)
def test_one_class_of_segmentation_is_followed_in_the_images_that_have_it(follow: int) -> None:
    model, images, labels = Ends(as_it_is, dense=True), images_of(), label_maps()
    those = FOLLOWED[follow]
    found = occlude(model, images, labels, "body.3", size=6, stride=6, fill=0.25, follow=follow)
    assert found.untouched.numbers is not None
    assert (found.untouched.numbers.tolist(), found.untouched.targets.tolist()) == (those, [follow] * len(those))
    covered = images.clone()
    covered[:, :, :6, 6:] = 0.25
    for given, p in ((images, found.untouched.probabilities), (covered, found.probabilities[:, 0, 1])):
        by_pixel = model.scores(given).softmax(1)
        expected = [float(by_pixel[number, follow][labels[number] == follow].mean()) for number in those]
        assert p.tolist() == pytest.approx(expected, abs=1e-6)
    curves = measure_invariance(model, images, labels, "body.3", "brightness", follow=follow)
    whole = measure_invariance(model, images, labels, "body.3", "brightness")
    torch.testing.assert_close(curves.sweeps[0].raw, whole.sweeps[0].raw[:, those])
    with torch.enable_grad():
        own = images[those].clone().requires_grad_()
        scores = model.scores(own)[:, follow]
        mean = sum(scores[place][labels[number] == follow].mean() for place, number in enumerate(those))
        (gradient,) = torch.autograd.grad(mean, own)  # type: ignore[arg-type]
    maps = attribute(model, images, labels, "saliency", follow=follow).maps
    torch.testing.assert_close(maps, gradient.abs())
    report = show(found, images=images)
    assert [item.name for item in report.items if item.name.startswith("image ")] == [f"image {n}" for n in those]


def test_a_class_that_no_image_has_cannot_be_followed() -> None:
    model, images, labels = Ends(as_it_is, dense=True), images_of(), label_maps()
    with pytest.raises(ValueError, match="follow=0: none of 1 images has this class; there are 1"):
        attribute(model, images[:1], labels[:1] * 0 + 1, follow=0)
    with pytest.raises(ValueError, match=r"follow=3: it is one of the network's 3 classes"):
        occlude(model, images, labels, follow=3)
    with pytest.raises(ValueError, match="of segmentation; the task is multiclass"):
        occlude(Ends(as_it_is), images, LABELS, follow=1)
