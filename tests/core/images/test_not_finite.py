"""Networks whose scores or features are NaN or infinite, for all images or for some: nothing makes a finding of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.core.images.invariance import half_width, measure_invariance
from lightning_cnnviz.core.images.occlusion import occlude
from lightning_cnnviz.core.network.classification import classify
from lightning_cnnviz.render.invariance import invariance_report, invariance_scalars
from lightning_cnnviz.render.occlusion import occlusion_report, occlusion_scalars
from lightning_cnnviz.report import Report, Scalar


class BreaksOnBright(nn.Module):
    """Gives scores of NaN, or of infinity, for images whose first pixel is bright."""

    def __init__(self, value: float = math.nan) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(images).relu().mean((2, 3)))
        return torch.where(images[:, :1, 0, 0] > 0.9, self.value, scores)


def images_of(*first_pixels: float) -> Tensor:
    images = torch.rand(len(first_pixels), 1, 12, 12) * 0.8
    images[:, 0, 0, 0] = torch.tensor(first_pixels)
    return images


def scalars(items: list[Scalar]) -> dict[str, float]:
    return {item.name: item.value for item in items}


def said(report: Report) -> list[str]:
    return [note for note in report.notes if note.startswith("Not finite")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_of_scores_that_are_not_finite_no_class_is_most_probable(value: float) -> None:
    images = images_of(0.2, 1.0, 0.3)
    found = classify(BreaksOnBright(value), images, torch.tensor([0, 1, 2]))
    assert found.scored.tolist() == [True, False, True]
    assert found.predictions[1] == -1
    assert found.probabilities.isfinite().tolist() == [True, False, True]
    alone = classify(BreaksOnBright(value), images)
    assert alone.targets[1] == -1
    assert math.isnan(alone.probabilities[1])


def test_one_broken_image_does_not_turn_probabilities_into_logits() -> None:
    class Ends(BreaksOnBright):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).softmax(1)

    network, images = Ends(), images_of(0.2, 1.0)
    found = classify(network, images, torch.tensor([1, 1]))
    assert found.task.normalized
    torch.testing.assert_close(found.probabilities[0], network(images)[0, 1].detach())


def test_minus_infinity_among_the_scores_is_a_class_that_is_ruled_out() -> None:
    class Masks(BreaksOnBright):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).index_fill(1, torch.tensor([0]), -math.inf)

    found = classify(Masks(), images_of(0.2, 0.4), torch.tensor([0, 1]))
    assert found.scored.all()
    assert found.probabilities[0] == 0


@pytest.mark.fault(
    "numbers",
    "the network's scores are NaN or infinite for some images",
    "occlusion's and invariance's means are NaN, the other images' own figures are right, the report says of how many",
)
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2])], ids=["unlabeled", "labeled"])
def test_some_images_are_not_finite(labels: Tensor | None) -> None:
    network, images = BreaksOnBright(), images_of(0.2, 1.0, 0.3)
    rest = None if labels is None else labels[[0, 2]]
    target = "p_true" if labels is not None else "p_predicted"
    # An occluder of gray over the first pixel heals the image, and all other positions leave it as it is.
    maps = occlude(network, images, labels, "conv", size=4, stride=4, fill=0.5)
    whole = occlude(network, images[[0, 2]], rest, "conv", size=4, stride=4, fill=0.5)
    torch.testing.assert_close(maps.probabilities[[0, 2]], whole.probabilities)
    torch.testing.assert_close(maps.activations[[0, 2]], whole.activations)
    assert torch.equal(maps.predictions[[0, 2]], whole.predictions)
    assert (maps.predictions[1, 1:] == -1).all()
    assert maps.predictions[1, 0, 0] >= 0
    assert maps.probabilities[1, 1:].isnan().all()
    numbers = scalars(occlusion_scalars(maps))
    assert math.isnan(numbers[f"{target}/largest_drop"])
    assert math.isnan(numbers[f"{target}/most_probable_share"])
    assert math.isfinite(numbers["conv/largest_drop"])  # the convolution comes before what breaks
    pixels = [torch.zeros(3, 12, 12, dtype=torch.uint8)] * 3
    assert "1 of 3 images" in said(occlusion_report(maps, pixels, [0, 1, 2]))[0]

    curves = measure_invariance(network, images, labels, "conv", transforms="rotation")
    whole_curves = measure_invariance(network, images[[0, 2]], rest, "conv", transforms="rotation")
    sweep, whole_sweep = curves.sweeps[0], whole_curves.sweeps[0]
    torch.testing.assert_close(sweep.probabilities[[0, 2]], whole_sweep.probabilities)
    widths = half_width(sweep.probabilities, sweep.values, 0.0, curves.untouched.probabilities)
    assert math.isnan(widths[1])
    assert widths[[0, 2]].isfinite().all()
    numbers = scalars(invariance_scalars(curves))
    assert math.isnan(numbers[f"rotation/{target}/half_width"])
    assert math.isnan(numbers[f"rotation/{target}/area"])
    report = invariance_report(curves, {})
    assert "1 of 3 images" in said(report)[0]
    captions = [item.caption for item in report.items if not isinstance(item, Scalar)]
    assert captions
    assert all("classified correctly" not in caption for caption in captions)


def test_features_that_are_not_finite_make_the_distances_of_their_layer_nan() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    network[0].weight.data[1] = math.nan
    curves = measure_invariance(network, torch.rand(2, 1, 10, 10), layers=["0"], transforms="translation")
    numbers = scalars(invariance_scalars(curves))
    assert all(math.isnan(value) for value in numbers.values())
    still = measure_invariance(network, torch.ones(1, 1, 10, 10), layers=["0"], transforms="rotation")
    assert not still.sweeps[0].finite.any()


def test_a_map_that_is_not_finite_is_not_the_strongest() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    network[0].weight.data[0] = math.nan
    with torch.no_grad():
        network[4].weight[:, 0] = 0
    maps = occlude(network, torch.rand(2, 1, 8, 8), layer="1", size=4, stride=4)
    assert (maps.channels > 0).all()
    assert maps.activations.isfinite().all()
    network[0].weight.data.fill_(math.nan)
    maps = occlude(network, torch.rand(2, 1, 8, 8), layer="1", size=4, stride=4)
    assert maps.channels.tolist() == [-1, -1]
    assert maps.untouched_activations.isnan().all()
    assert maps.activations.isnan().all()
    assert not maps.projections or all(pixels.isnan().all() for pixels in maps.projections)
    report = occlusion_report(maps, [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2, [0, 1])
    assert len(said(report)) == 2
