"""FineTuner on several labels, a yes or no, values, and outputs of a subclass's own, against plain computations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from finetune.tuning import SIZE, images, little_net, trainer, tuner
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lightning_cnnviz import MemorySink
from lightning_cnnviz.finetune import FineTuner
from lightning_cnnviz.finetune.tasks import task_loss, task_targets


def multi_hot(classes: Tensor) -> Tensor:
    return torch.stack([classes == 0, classes > 0, classes % 2 == 0, classes == 1], 1).long()


def brightness(classes: Tensor) -> Tensor:
    return torch.stack([classes * 2.0 + 5, -classes.float()], 1)


def loaders(form: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    made = []
    for count, seed in ((24, 1), (15, 2)):
        pixels, classes = images(count, seed=seed).tensors
        made.append(DataLoader(TensorDataset(pixels, form(classes)), batch_size=8))
    return made[0], made[1]


def measured(module: FineTuner, form: Any, **options: Any) -> tuple[dict[str, float], Tensor, Tensor]:
    """What is logged of validation after two epochs, and its outputs and labels."""
    train, val = loaders(form)
    fitted = trainer(max_epochs=2, num_sanity_val_steps=0, **options)
    fitted.fit(module, train, val)
    logged = {name: float(value) for name, value in fitted.callback_metrics.items() if name.startswith("val/")}
    pixels, labels = val.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return logged, module.eval()(pixels), labels


def test_several_labels_are_trained_and_measured_each() -> None:
    sink = MemorySink()
    logged, outputs, labels = measured(tuner(num_classes=4, task="multilabel", sinks=[sink]), multi_hot)
    right = ((outputs > 0) == (labels > 0)).double().mean(0)
    precisions = [average_precision_score(labels[:, k], outputs[:, k]) for k in range(4)]
    assert logged == {
        "val/loss": pytest.approx(float(F.binary_cross_entropy_with_logits(outputs, labels.float())), abs=1e-5),
        "val/accuracy": pytest.approx(float(right.mean()), abs=1e-6),
        "val/mean_average_precision": pytest.approx(sum(precisions) / 4, abs=1e-5),
    }
    assert sink.reports == []  # a confusion matrix is of classes


@pytest.mark.parametrize("form", [lambda classes: classes % 2, lambda classes: (classes % 2)[:, None].float()])
def test_a_yes_or_no_is_one_logit(form: Any) -> None:
    logged, outputs, labels = measured(tuner(num_classes=1, task="binary"), form)
    wanted = labels.view(-1, 1)
    assert outputs.shape == (15, 1)
    assert logged == {
        "val/loss": pytest.approx(float(F.binary_cross_entropy_with_logits(outputs, wanted.float())), abs=1e-5),
        "val/accuracy": pytest.approx(float(((outputs > 0) == (wanted > 0)).double().mean()), abs=1e-6),
        "val/average_precision": pytest.approx(average_precision_score(wanted, outputs), abs=1e-5),
    }


def test_values_are_trained_by_squared_error() -> None:
    logged, outputs, labels = measured(tuner(num_classes=2, task="regression", lr=0.05), brightness)
    assert logged == {
        "val/loss": pytest.approx(float(F.mse_loss(outputs, labels)), abs=1e-4),
        "val/mean_absolute_error": pytest.approx(mean_absolute_error(labels, outputs), abs=1e-5),
        "val/r2": pytest.approx(r2_score(labels, outputs), abs=1e-4),
    }
    one, outputs, labels = measured(tuner(num_classes=1, task="regression"), lambda classes: classes.float())
    assert one["val/loss"] == pytest.approx(float(F.mse_loss(outputs[:, 0], labels)), abs=1e-4)


def test_cached_features_carry_labels_of_any_form() -> None:
    options: dict[str, Any] = {"num_classes": 4, "task": "multilabel", "mode": "head"}
    plain, outputs, _ = measured(tuner(**options), multi_hot)
    cached, again, _ = measured(tuner(**options, cache_features=True), multi_hot)
    torch.testing.assert_close(outputs, again)
    assert plain == pytest.approx(cached, abs=1e-5)


def test_a_network_that_ends_in_a_sigmoid_is_taken_back_to_logits_but_for_values() -> None:
    def network() -> nn.Module:
        return nn.Sequential(*little_net(), nn.Sigmoid())

    module, values = (tuner(network(), num_classes=1, task=task).eval() for task in ("binary", "regression"))
    pixels = images().tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(module(pixels).sigmoid(), module.network(pixels))
        assert torch.equal(values(pixels), values.network(pixels))


class Ends(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
@pytest.mark.parametrize(
    "ends",
    [
        lambda x: x.softmax(1),
        lambda x: 1 - x.sigmoid(),
        lambda x: torch.stack([x.sigmoid(), (x / 2).sigmoid()]).mean(0),
        lambda x: torch.maximum(x.sigmoid(), (2 * x).sigmoid()),
        lambda x: (x.softmax(1) + (x / 2).softmax(1)) / 2,
    ],
)
def test_what_stays_probabilities_is_taken_back_to_logits(task: str, ends: Callable[[Tensor], Tensor]) -> None:
    module = tuner(nn.Sequential(*little_net(), Ends(ends)), num_classes=4, task=task).eval()
    pixels = images().tensors[0]
    with torch.no_grad():
        logits, made = module(pixels), module.network(pixels)
    one_class = task == "multiclass" and bool((made.sum(1) - 1).abs().max() < 1e-4)
    torch.testing.assert_close(logits.softmax(1) if one_class else logits.sigmoid(), made)


def test_scores_above_one_are_taken_for_logits_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(*little_net(), Ends(lambda x: x.sigmoid() + (x / 2).sigmoid()))
    module, pixels = tuner(network, num_classes=4, task="multilabel").eval(), images().tensors[0]
    assert "never negative, but no probabilities" in caplog.text
    with torch.no_grad():
        assert torch.equal(module(pixels), module.network(pixels))


class TwoOutputs(FineTuner):
    """Three classes and a value at once."""

    def compute_loss(self, outputs: Tensor, labels: Any, *, training: bool = False) -> Tensor:
        return F.cross_entropy(outputs[:, :3], labels["kind"]) + F.mse_loss(outputs[:, 3], labels["size"])

    def update_metrics(self, metrics: MetricCollection, outputs: Tensor, labels: Any) -> None:
        super().update_metrics(metrics, outputs, labels["kind"])


class Both(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        pixels, kind = images()[index]
        return pixels, {"kind": kind, "size": kind * 0.5}


def test_two_outputs_are_those_of_a_subclass() -> None:
    torch.manual_seed(5)
    module = TwoOutputs(little_net(), 4, image_size=SIZE, sinks=[], mode="full", lr=0.02)
    loader = DataLoader(Both(), batch_size=8)
    fitted = trainer(max_epochs=3, num_sanity_val_steps=0)
    fitted.fit(module, loader, loader)
    pixels = torch.stack([item[0] for item in Both()])  # type: ignore[attr-defined]
    kinds = images().tensors[1]
    with torch.no_grad():
        outputs = module.eval()(pixels)
    assert float(fitted.callback_metrics["val/accuracy"]) == pytest.approx(
        float((outputs.argmax(1) == kinds).double().mean())
    )
    loss = F.cross_entropy(outputs[:, :3], kinds) + F.mse_loss(outputs[:, 3], kinds * 0.5)
    assert float(fitted.callback_metrics["val/loss"]) == pytest.approx(float(loss), abs=1e-4)


def test_losses_have_weights_and_smoothing_in_training_alone() -> None:
    outputs, labels = torch.randn(5, 3), (torch.arange(15).view(5, 3) % 2).float()
    weight = torch.tensor([1.0, 2.0, 0.0])
    smoothed = labels * 0.8 + 0.1
    each = -(smoothed * outputs.sigmoid().log() + (1 - smoothed) * (-outputs).sigmoid().log())
    found = task_loss(outputs, labels, "multilabel", weight=weight, label_smoothing=0.2)
    torch.testing.assert_close(found, (each * weight).mean())
    values = task_loss(outputs, labels, "regression", weight=weight)
    torch.testing.assert_close(values, ((outputs - labels) ** 2 * weight).mean())
    module = tuner(num_classes=3, task="multilabel", class_weights=[1, 2, 0], label_smoothing=0.2)
    torch.testing.assert_close(module.compute_loss(outputs, labels, training=True), found)
    plain = F.binary_cross_entropy_with_logits(outputs, labels)
    torch.testing.assert_close(module.compute_loss(outputs, labels), plain)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "multi"}, "task='multi': it is one of 'multiclass', 'multilabel'"),
        ({"task": "binary"}, "num_classes=3: a yes or no has one logit"),
        ({"num_classes": 1}, 'num_classes=1: a classifier has 2 classes or more; .* task="binary"'),
        ({"task": "multilabel", "num_classes": 0}, "num_classes=0: give the number of labels"),
        ({"task": "multilabel", "mixup": 0.2}, 'mixup=0.2 mixes classes, and task="multilabel" has none'),
        ({"task": "regression", "label_smoothing": 0.1}, "label_smoothing=0.1 is of classes"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tuner(**options)


def test_labels_of_another_form_are_named() -> None:
    outputs = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"labels are torch.int64 of shape \(4,\), where each of 4 images has 3 zeros"):
        task_targets(torch.arange(4), outputs, "multilabel")
    with pytest.raises(ValueError, match="labels reach from 0 to 2; they are 0 for no and 1 for yes"):
        task_targets(torch.arange(3), torch.zeros(3, 1), "binary")
    with pytest.raises(ValueError, match="has 3 values"):
        task_targets(torch.rand(4, 2), outputs, "regression")
