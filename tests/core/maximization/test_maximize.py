"""Activation maximization against optima that are known, one at a time against batches, and without a trace."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from callbacks.littlenet import LittleNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_cnnviz.core.deconvnet.projection import Unit
from lightning_cnnviz.core.images.transforms import Transform
from lightning_cnnviz.core.maximization import maximize as maximization_module
from lightning_cnnviz.core.maximization.maximize import Maximization, maximize, strongest_images, unit_input_size
from lightning_cnnviz.core.maximization.objectives import ChannelActivation, ClassScore, UnitActivation
from lightning_cnnviz.core.maximization.optimum import optimum_invariance
from lightning_cnnviz.core.maximization.parametrization import Box, Parametrization, Pixels, Sphere
from lightning_cnnviz.core.maximization.regularization import L2, Jitter, Scale, TotalVariation
from lightning_cnnviz.core.network.layers import LayerNotFoundError, select_layers
from lightning_cnnviz.core.tracing.feature_maps import trace_feature_maps

SPHERE = Parametrization(Pixels(), Sphere(2.0))


def net(channels: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 5, 3),
    )


class Classifier(nn.Module):
    """Functional ReLUs, a reused module, and a flattening that refuses every other order of memory."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * size * size, 7)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.again(F.relu(self.again(F.relu(self.first(images))))))
        scores: Tensor = self.head(maps.view(len(maps), -1))
        return scores


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_optimum_of_a_linear_unit_on_a_sphere_is_its_kernel(channels: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 4, 5)
    model = nn.Sequential(conv)
    colors = Parametrization(Pixels(), Sphere(2.0), torch.eye(channels))
    found = maximize(
        model,
        [UnitActivation("0", c) for c in range(4)],
        (channels, 5, 5),
        steps=300,
        parametrization=colors,
        transforms=None,
    )
    for number, image in enumerate(found.images):
        kernel = conv.weight[number // found.starts].detach()
        assert float(F.cosine_similarity(image.flatten(), kernel.flatten(), dim=0)) > 0.9999
        best = 2.0 * float(kernel.norm()) + float(conv.bias.detach()[number // found.starts])  # type: ignore[union-attr]
        assert float(found.activations[number]) == pytest.approx(best, rel=1e-3)


def test_the_optimum_of_a_linear_unit_in_a_box_is_a_corner() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, bias=False)
    settings = Parametrization(Pixels(), Box(-1.0, 3.0))
    found = maximize(
        nn.Sequential(conv), UnitActivation("0", 0), (1, 3, 3), steps=200, learning_rate=0.3, parametrization=settings,
        transforms=None,
    )  # fmt: skip
    corner = torch.where(conv.weight.detach()[0] > 0, 3.0, -1.0)
    assert torch.allclose(found.images, corner.expand_as(found.images), atol=0.05)
    assert float(found.activations.max()) <= float((corner * conv.weight.detach()[0]).sum())


def test_activations_are_those_of_the_network_and_images_keep_their_bounds() -> None:
    model = net().eval()
    found = maximize(model, [UnitActivation("4", 2, 1, 3), ChannelActivation("4", 5)], (3, 16, 16), starts=2, steps=12)
    with torch.no_grad():
        maps = model[:5](found.images)
    expected = torch.cat([maps[:2, 2, 1, 3], maps[2:, 5].mean((1, 2))])
    assert torch.allclose(found.activations, expected, atol=1e-5)
    assert float(found.images.abs().max()) <= 2.0
    assert found.history.shape == (4, 12)
    assert bool((found.activations > found.history[:, 0]).all())


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    model, objectives = net(), [UnitActivation("6", c) for c in range(5)]
    options: dict[str, Any] = {"starts": 2, "steps": 10, "transforms": Jitter(1) + Scale()}
    together = maximize(model, objectives, (3, 16, 16), batch_size=batch_size, **options)
    for number, objective in enumerate(objectives):
        alone = maximize(model, objective, (3, 16, 16), **options)
        assert torch.allclose(together.images[together.of(number)], alone.images, atol=1e-4)
        assert torch.allclose(together.history[together.of(number)], alone.history, atol=1e-4)


def test_chance_is_the_seeds_alone() -> None:
    def run(seed: int) -> Tensor:
        return maximize(net(), UnitActivation("4", 1), (3, 16, 16), starts=2, steps=3, seed=seed).images

    torch.manual_seed(5)
    first = run(0)
    torch.manual_seed(6)
    assert torch.equal(run(0), first)
    assert not torch.allclose(run(1), first)
    assert not torch.allclose(first[0], first[1])


def test_a_unit_that_the_noise_leaves_dead_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    with torch.no_grad():
        model[4].bias -= 1.0  # type: ignore[operator]
    objectives = [UnitActivation("5", c) for c in range(8)]  # behind its ReLU
    found = maximize(model, objectives, (3, 16, 16), steps=80)
    assert bool((found.history[:, 0] == 0).all())
    assert int((found.activations > 0).sum()) >= 20
    monkeypatch.setattr(maximization_module, "_RESCUE_STEPS", 0)
    assert bool((maximize(model, objectives, (3, 16, 16), steps=80).activations == 0).all())


def test_a_penalty_is_paid() -> None:
    model = net()
    plain = maximize(model, UnitActivation("4", 1), (3, 16, 16), steps=40, transforms=None)
    smooth = maximize(
        model, UnitActivation("4", 1), (3, 16, 16), steps=40, transforms=None, penalty=1.0 * TotalVariation()
    )
    assert float(smooth.images.diff(dim=3).abs().mean()) < 0.7 * float(plain.images.diff(dim=3).abs().mean())
    # What is reported is the activation, without the penalty.
    with torch.no_grad():
        maps = model.eval()[:5](smooth.images)[:, 1]
    assert torch.isclose(maps, smooth.activations[:, None, None], atol=1e-5).flatten(1).any(1).all()


def test_a_penalty_may_be_part_of_the_objective() -> None:
    model, options = net(), {"steps": 60, "transforms": None}
    alone = maximize(model, UnitActivation("4", 1), (3, 16, 16), **options)
    damped = maximize(model, UnitActivation("4", 1) - 10.0 * L2(0.5), (3, 16, 16), **options)
    assert float((damped.images - 0.5).square().mean()) < 0.1 * float((alone.images - 0.5).square().mean())
    assert damped.objectives == ("4, channel 1 - 10 * L2",)


def test_passes_stop_at_the_layer() -> None:
    model, counts = net(), {"4": 0, "6": 0}
    for name in counts:
        layer = model[int(name)]
        layer.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    maximize(model, UnitActivation("4", 0), (3, 16, 16), starts=1, steps=10)
    assert counts["4"] >= 11
    assert counts["6"] <= 1  # when the layer is looked up, to see that it runs once


def test_classes_and_sums() -> None:
    model = Classifier().eval()
    single = ClassScore(3, "cat")
    found = maximize(model, [single, single - 0.5 * ClassScore(1)], (3, 12, 12), steps=15)
    with torch.no_grad():
        scores = model(found.images)
    expected = torch.cat([scores[:3, 3], scores[3:, 3] - 0.5 * scores[3:, 1]])
    assert torch.allclose(found.activations, expected, atol=1e-5)
    assert found.objectives == ("class 3 (cat)", "class 3 (cat) - 0.5 * class 1")


def test_networks_of_other_kinds() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Classifier()

        def forward(self, images: Tensor) -> Any:
            images -= 0.5  # it writes into what it is given
            return type("Output", (), {"logits": self.inner(images)})()

    assert maximize(Wrapped(), ClassScore(6), (3, 12, 12), steps=2).images.shape == (3, 3, 12, 12)
    assert (
        maximize(LittleNet(), [UnitActivation("features.4", 1), ClassScore(0)], (1, 14, 14), steps=2).images.shape[0]
        == 6
    )
    for dtype in (torch.float64, torch.bfloat16):
        found = maximize(net().to(dtype), UnitActivation("4", 1), (3, 16, 16), steps=6)
        assert found.images.dtype == torch.float32
        assert bool((found.activations > found.history[:, 0]).all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert maximize(net(), UnitActivation("4", 1), (3, 16, 16), steps=4).images.dtype == torch.float32


def test_a_network_that_has_diverged_shows_it() -> None:
    model = net()
    with torch.no_grad():
        model[4].weight[:] = torch.nan  # type: ignore[index]
    found = maximize(model, UnitActivation("4", 1), (3, 16, 16), steps=3)
    assert bool(found.activations.isnan().all())
    assert bool(found.images.isfinite().all())
    assert found.ranked(0) == [0, 1, 2]


def state_of(model: nn.Module) -> list[Any]:
    parts: list[Any] = [value.clone() for value in model.state_dict().values()]
    parts += [parameter.requires_grad for parameter in model.parameters()]
    parts += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    for module in model.modules():
        parts += [module.training, len(module._forward_hooks), len(module._forward_pre_hooks)]
    return [*parts, torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy()), random.getstate()]


def assert_same(first: list[Any], second: list[Any]) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace(fails: bool) -> None:
    model = net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(torch.rand(2, 3, 16, 16)).sum().backward()

    def progress(work: Iterable[Any]) -> Iterable[Any]:
        for number, piece in enumerate(work):
            if fails and number == 5:
                raise RuntimeError("stop")
            yield piece

    images = torch.rand(3, 3, 16, 16)
    before = state_of(model)
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            maximize(model, UnitActivation("4", 0), (3, 16, 16), steps=8, progress=progress)
    else:
        maximize(model, UnitActivation("4", 0), (3, 16, 16), steps=8, progress=progress)
        strongest_images(model, [UnitActivation("4", 0)], images)
        unit_input_size(model, "4", (3, 16, 16))
    assert_same(before, state_of(model))
    with torch.inference_mode():
        maximize(model, UnitActivation("4", 0), (3, 16, 16), steps=2)
    assert_same(before, state_of(model))


def test_progress_counts_the_steps() -> None:
    seen: list[int] = []

    def progress(work: Iterable[Any]) -> Iterable[Any]:
        work = list(work)
        seen.append(len(work))
        return work

    maximize(
        net(),
        [UnitActivation("4", c) for c in range(4)],
        (3, 16, 16),
        starts=2,
        steps=7,
        batch_size=4,
        progress=progress,
    )
    assert seen == [14]


@pytest.mark.parametrize(
    ("objective", "size", "options", "match"),
    [
        (UnitActivation("9", 0), (3, 16, 16), {}, "no layer of Sequential matches '9'"),
        (UnitActivation("conv", 0), (3, 16, 16), {}, "layer='conv' means 3 layers"),
        (UnitActivation("4", 8), (3, 16, 16), {}, r"channel 8 of layer '4': it has 8 \(0 to 7\)"),
        (UnitActivation("4", -1), (3, 16, 16), {}, "channel -1"),
        (ChannelActivation("4", 99), (3, 16, 16), {}, "channel 99"),
        (UnitActivation("4", 0, 6, 0), (3, 16, 16), {}, r"unit \(6, 0\) of layer '4'.* 16 x 16 .* are 6 x 6"),
        (UnitActivation("4", 0), (3, 3, 3), {}, r"does not take images of shape \(3, 3, 3\): .*[Kk]ernel"),
        (UnitActivation("4", 0), (1, 16, 16), {}, r"does not take images of shape \(1, 16, 16\): .*channels"),
        (ClassScore(5), (3, 16, 16), {}, "class 5"),
        (UnitActivation("4", 0), (16, 16), {}, "input_size=.16, 16.*channels, height and width"),
        (UnitActivation("4", 0), (3, 16, 0), {}, "input_size"),
        (UnitActivation("4", 0), (3, 16, 16), {"starts": 0}, "starts=0"),
        (UnitActivation("4", 0), (3, 16, 16), {"steps": 0}, "steps=0"),
        (UnitActivation("4", 0), (3, 16, 16), {"batch_size": 0}, "batch_size=0"),
        (UnitActivation("4", 0), (3, 16, 16), {"learning_rate": 0.0}, "learning_rate=0"),
        (UnitActivation("4", 0), (3, 16, 16), {"transforms": "jitter"}, "transforms='jitter'"),
        ([], (3, 16, 16), {}, r"objectives=\[\]"),
    ],
)
def test_bad_input_is_named(objective: Any, size: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        maximize(net(), objective, size, **{"steps": 2, **options})


def test_what_cannot_be_climbed_is_refused() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            self.conv.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            maps: Tensor = self.conv(images.detach())
            return maps

    with pytest.raises(ValueError, match="no gradient reaches the image from conv, channel 0"):
        maximize(Detached(), UnitActivation("conv", 0), (3, 8, 8), steps=2)
    with pytest.raises(LayerNotFoundError, match=r"again.*runs more than once"):
        maximize(Classifier(), UnitActivation("again", 0), (3, 12, 12), steps=2)
    with pytest.raises(
        TypeError, match=r"'4' is a builtins\.str and no objective: give UnitActivation\(layer, channel\)"
    ):
        maximize(net(), ["4"], (3, 8, 8))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="7 classes"):
        maximize(Classifier(), ClassScore(7), (3, 12, 12))


class Particular(nn.Module):
    """Asserts one size, as vision transformers do, and merges images and channels in a view."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (16, 16), "wrong image size"
        maps = F.relu(self.first(images))
        maps = self.second(maps.view(-1, 1, *maps.shape[2:]))
        return maps.view(len(images), -1).unflatten(1, (8, -1)).mean(2)


def test_what_a_network_asserts_is_a_refusal() -> None:
    with pytest.raises(ValueError, match=r"Particular does not take images of shape \(3, 20, 20\): wrong image size"):
        maximize(Particular(), ClassScore(0), (3, 20, 20), steps=2)
    assert unit_input_size(Particular(), "first", (3, 16, 16)) == (3, 16, 16)


def test_views_that_only_one_order_of_memory_allows() -> None:
    model = Particular().eval()
    found = maximize(model, [ClassScore(c) for c in range(3)], (3, 16, 16), starts=2, steps=2)
    with torch.no_grad():
        expected = torch.stack([model(image[None])[0, number // 2] for number, image in enumerate(found.images)])
    assert torch.allclose(found.activations, expected, atol=1e-5)


def test_a_layer_in_front_of_a_part_that_refuses_small_images() -> None:
    found = maximize(Classifier(12), UnitActivation("first", 1), (3, 5, 5), steps=2)
    assert found.images.shape == (3, 3, 5, 5)
    assert found.boxes.tolist() == [[1, 1, 4, 4]]
    assert torch.equal(found.seen(2), found.images[2, :, 1:4, 1:4])


@pytest.mark.parametrize(
    ("layers", "input_size", "expected"),
    [
        ([nn.Conv2d(3, 1, 11, stride=4, padding=2)], (3, 64, 64), (3, 13, 13)),
        ([nn.Conv2d(3, 1, 3), nn.Conv2d(1, 1, 3)], (3, 64, 48), (3, 5, 5)),
        ([nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(1, 1, (3, 5), padding=1)], (3, 64, 48), (3, 5, 7)),
        ([nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1)], (3, 20, 30), (3, 20, 30)),
        ([nn.Conv2d(3, 1, 9, padding=4)], (3, 6, 30), (3, 6, 9)),
    ],
)
def test_a_unit_needs_its_receptive_field(layers: Any, input_size: Any, expected: Any) -> None:
    model = nn.Sequential(*layers)
    assert unit_input_size(model, str(len(layers) - 1), input_size) == expected


def test_a_small_input_gives_the_optimum_of_the_large_one() -> None:
    """The unit sees the same: its activation on the small image is that on a large one that holds it."""
    model = net().eval()
    size = unit_input_size(model, "6", (3, 40, 40))
    assert size[1] < 40
    found = maximize(model, UnitActivation("6", 2), size, starts=1, steps=10)
    top, left, bottom, right = found.boxes[0].tolist()
    field = trace_feature_maps(model, torch.zeros(1, 3, 40, 40), select_layers(model, "6"))[0].field
    box = field.boxes[0, 3, 3].tolist()
    assert (bottom - top, right - left) == (box[2] - box[0], box[3] - box[1])
    large = torch.rand(1, 3, 40, 40)
    large[0, :, box[0] : box[2], box[1] : box[3]] = found.seen(0)
    with torch.no_grad():
        assert float(model(large)[0, 2, 3, 3]) == pytest.approx(float(found.activations[0]), abs=1e-5)


def test_the_strongest_images_are_those_of_a_loop() -> None:
    model = net().eval()
    images = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    objectives = [
        UnitActivation("4", 2),
        ChannelActivation("4", 2),
        UnitActivation("4", 1, 0, 5),
        UnitActivation("4", 0) + UnitActivation("4", 1),
    ]
    found = strongest_images(model, objectives, images, batch_size=3)
    with torch.no_grad():
        maps = torch.cat([model[:5](image[None]) for image in images])
    field = trace_feature_maps(model, images[:1], select_layers(model, "4"))[0].field
    center = (3, 3)
    values = [maps[:, 2].flatten(1).amax(1), maps[:, 2].mean((1, 2)), maps[:, 1, 0, 5]]
    values.append(maps[:, 0][:, center[0], center[1]] + maps[:, 1][:, center[0], center[1]])
    for number, expected in enumerate(values):
        assert float(found.activations[number]) == pytest.approx(float(expected.max()), abs=1e-5)
        assert int(found.numbers[number]) == int(expected.argmax())
    row, column = divmod(int(maps[int(found.numbers[0]), 2].argmax()), 6)
    assert found.boxes[0].tolist() == field.boxes[0, row, column].tolist()
    top, left, bottom, right = found.boxes[0].tolist()
    assert torch.equal(found.patches[0], images[int(found.numbers[0]), :, top:bottom, left:right])
    assert found.patches[1].shape == (3, 16, 16)
    with pytest.raises(ValueError, match="at least one"):
        strongest_images(model, objectives, images[:0])


def test_a_result_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="1 objectives from 2 starts are 2 images"):
        Maximization(
            objectives=("a",),
            starts=2,
            images=torch.zeros(3, 1, 2, 2),
            activations=torch.zeros(2),
            history=torch.zeros(2, 5),
            boxes=torch.zeros(1, 4),
        )


def test_what_is_of_another_view_is_refused_by_name() -> None:
    unit, model = Unit(image=0, layer="4", channel=1), net()
    kind = r"lightning_cnnviz\.core\.deconvnet\.projection\.Unit and no objective: give UnitActivation"
    for objectives in (unit, [unit], [UnitActivation("4", 0), unit]):
        with pytest.raises(TypeError, match=kind):
            maximize(model, objectives, (3, 16, 16))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=kind):
        strongest_images(model, [unit], torch.rand(1, 3, 16, 16))  # type: ignore[list-item]
    with pytest.raises(TypeError, match=kind):
        optimum_invariance(model, unit, torch.rand(3, 16, 16))  # type: ignore[arg-type]
    sweep = Transform("roll", lambda images, value: images.roll(round(value), 2), (0, 1))
    for transforms, name in (
        (sweep, "lightning_cnnviz.core.images.transforms.Transform"),
        ([Jitter()], "builtins.list"),
    ):
        with pytest.raises(TypeError, match=rf"transforms is a {name} and no RandomTransform: .* Jitter\(8\) \+ Scale"):
            maximize(model, UnitActivation("4", 0), (3, 16, 16), transforms=transforms)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"penalty=0\.25: give an objective, for example 0\.5 \* TotalVariation"):
        maximize(model, UnitActivation("4", 0), (3, 16, 16), penalty=0.25)  # type: ignore[arg-type]


class Checkpointed(nn.Module):
    """Runs again on the way back, and keeps nothing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.body, images, use_reentrant=False)
        return found


@pytest.mark.parametrize("layer", ["0", "1"])
def test_a_checkpointed_network_is_climbed_as_any_other(layer: str) -> None:
    body, last = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(True)), nn.Conv2d(6, 4, 3)
    plain, checkpointed = nn.Sequential(body, last), nn.Sequential(Checkpointed(body), last)
    first, second = (maximize(net, UnitActivation(layer, 1), (3, 9, 9), steps=4) for net in (plain, checkpointed))
    assert torch.equal(first.images, second.images)
