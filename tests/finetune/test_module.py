"""FineTuner trains what its mode and epoch say and nothing else, resumes in any stage, and refuses what is wrong."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from finetune.tuning import SIZE, differing, images, little_net, train_loader, trainer, tuner, val_loader, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import MemorySink, WandbSink
from lightning_cnnviz.finetune import FineTuner
from lightning_cnnviz.finetune.networks import make_network

STAGED: dict[str, Any] = {"mode": "staged", "unfreeze_at": [1, 2]}


class Epochs(pl.Callback):
    """Keeps the weights at the start of each epoch, and what is trained in it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.lowest: list[int] = []
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.weights.append(weights(pl_module.network))
            self.lowest.append(pl_module.lowest_trained_stage)
            self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(weights(pl_module.network))


def fit(module: FineTuner, **options: Any) -> Epochs:
    epochs = Epochs()
    ckpt_path = options.pop("ckpt_path", None)
    loader = options.pop("loader", None)
    loader = train_loader() if loader is None else loader
    torch.manual_seed(9)
    callbacks = [epochs, *options.pop("callbacks", [])]
    trainer(callbacks=callbacks, **options).fit(module, loader, val_loader(), ckpt_path=ckpt_path)
    return epochs


# What is frozen


def test_stages_learn_from_their_epoch_on_and_not_before() -> None:
    module = tuner(**STAGED)
    seen = fit(module)
    assert seen.lowest == [3, 2, 1, 1]
    parts = {"0": 0, "1": 0, "5": 1, "6": 1, "10": 2, "11": 2, "17": 3}
    for epoch in range(4):
        moved = {parts[key.split(".")[0]] for key in differing(seen.weights[epoch], seen.weights[epoch + 1])}
        assert moved == set(range(seen.lowest[epoch], 4)), epoch


@pytest.mark.parametrize("mode", ["head", "full"])
def test_head_and_full(mode: Any) -> None:
    seen = fit(tuner(mode=mode), max_epochs=1)
    moved = {key.split(".")[0] for key in differing(*seen.weights)}
    assert moved == ({"17"} if mode == "head" else {"0", "1", "5", "6", "10", "11", "17"})


def test_frozen_features_are_the_same_in_training_and_in_eval() -> None:
    # BaseFinetuning's frozen BatchNorm still normalizes by the batch.
    module = tuner(mode="head")
    features, batch = module.network[:-1], torch.rand(5, *SIZE)
    module.train()
    with torch.no_grad():
        training, evaluated = features(batch), features.eval()(batch)
    assert torch.equal(training, evaluated)
    assert module.network[17].training


def test_decay_and_momentum_do_not_reach_what_is_frozen() -> None:
    options = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9, "weight_decay": 0.5}, "lr": 0.1}
    seen = fit(tuner(mode="head", **options))
    assert {key.split(".")[0] for key in differing(seen.weights[0], seen.weights[-1])} == {"17"}


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("cosine", {}),
        ("OneCycleLR", {}),
        ("torch.optim.lr_scheduler.LambdaLR", {"lr_lambda": lambda epoch: 0.5**epoch}),
        ("CosineAnnealingLR", {}),
        ("ReduceLROnPlateau", {"patience": 0}),
        (None, {}),
    ],
)
def test_schedulers_survive_unfreezing(scheduler: str | None, options: dict[str, Any]) -> None:
    # LambdaLR and OneCycleLR crash where a group is added later.
    seen = fit(tuner(**STAGED, scheduler=scheduler, scheduler_options=options))
    assert len({len(rates) for rates in seen.rates}) == 1
    if scheduler is not None and scheduler.endswith("LambdaLR"):
        assert [rates[0] for rates in seen.rates] == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4])


def test_validating_changes_nothing_that_is_frozen() -> None:
    # BaseFinetuning freezes the backbone again.
    module = tuner(**STAGED)
    fit(module)
    flags = [parameter.requires_grad for parameter in module.parameters()]
    modes = [part.training for part in module.modules()]
    assert any(flags[: len(flags) // 2])
    for run in ("validate", "test", "predict"):
        getattr(trainer(), run)(module, val_loader(), **({} if run == "predict" else {"verbose": False}))
        assert [parameter.requires_grad for parameter in module.parameters()] == flags
        assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize("done", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_resuming_in_any_stage_gives_the_weights_of_the_run_that_was_not_interrupted(
    done: int, optimizer: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "layer_decay": 0.7, **STAGED}
    if optimizer == "SGD":
        options |= {"optimizer_options": {"momentum": 0.9}}

    class Seeded(pl.Callback):
        # Dropout is to draw the same, however the step is reached.
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            torch.manual_seed(100 + trainer.global_step)

    class Saved(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == done - 1:
                trainer.save_checkpoint(tmp_path / "stage.ckpt")

    plain = DataLoader(images(), batch_size=8)
    whole = tuner(**options)
    fit(whole, loader=plain, callbacks=[Seeded(), Saved()])
    resumed = tuner(little_net(seed=3), **options)
    seen = fit(resumed, loader=plain, callbacks=[Seeded()], ckpt_path=tmp_path / "stage.ckpt")
    assert seen.lowest == [3, 2, 1, 1][done:]
    assert differing(weights(whole), weights(resumed)) == []


def test_what_its_owner_froze_never_moves() -> None:
    network = little_net()
    network[5].requires_grad_(False)
    seen = fit(tuner(network, mode="full"), max_epochs=2)
    moved = {key.split(".")[0] for key in differing(seen.weights[0], seen.weights[-1])}
    assert moved == {"0", "1", "6", "10", "11", "17"}


# Optimization


def test_learning_rates_decay_by_stage_and_norms_and_biases_are_not_decayed() -> None:
    module = tuner(layer_decay=0.5, scheduler=None, optimizer_options={"weight_decay": 0.3})
    optimizer = module.configure_optimizers()
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    assert found["17.weight"] == (1e-3, 0.3)
    assert found["17.bias"] == (1e-3, 0.0)
    assert found["0.weight"] == (pytest.approx(1e-3 / 8), 0.3)
    assert found["1.weight"] == (pytest.approx(1e-3 / 8), 0.0)
    assert found["10.weight"] == (pytest.approx(1e-3 / 2), 0.3)


def test_an_optimizer_of_ones_own() -> None:
    module = tuner(optimizer=lambda groups: torch.optim.Adagrad(groups, lr=0.5), scheduler=None, layer_decay=0.1)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adagrad)
    assert max(group["lr"] for group in optimizer.param_groups) == 0.5
    assert min(group["lr"] for group in optimizer.param_groups) == pytest.approx(5e-4)
    assert isinstance(tuner(optimizer="torch.optim.SGD").optimizer, str)


def test_the_rate_rises_and_falls_step_by_step() -> None:
    class Rates(pl.Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            self.found.append(trainer.optimizers[0].param_groups[-1]["lr"])

    rates = Rates()
    fit(tuner(lr=0.1, warmup_epochs=1), callbacks=[rates])  # 4 epochs of 3 batches
    rising = [0.1 * (step + 1) / 4 for step in range(3)]
    falling = [0.05 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
    assert rates.found == pytest.approx(rising + falling)


def test_the_rate_rises_and_falls_where_steps_alone_end_the_run() -> None:
    seen: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[-1]["lr"])

    # Epochs have 3 batches.
    fit(tuner(lr=0.1, warmup_epochs=1), callbacks=[Rates()], max_epochs=-1, max_steps=8)
    rising = [0.1 * (step + 1) / 4 for step in range(3)]
    falling = [0.05 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    assert seen == pytest.approx(rising + falling)


# Losses and measures


def test_the_loss_is_weighted_and_smoothed() -> None:
    module = tuner(label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0], mode="head")
    batch = next(iter(val_loader()))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    found = module.training_step(batch, 0)
    chances = module.network(batch[0]).log_softmax(1)
    target = F.one_hot(batch[1], 3) * 0.9 + 0.1 / 3
    weights_of = torch.tensor([1.0, 2.0, 3.0])
    expected = -(target * weights_of * chances).sum() / weights_of[batch[1]].sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_mixes() -> None:
    module, seen = tuner(mixup=0.5), []
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fit(module, max_epochs=1)
    plain = torch.stack([image for image, _ in images()])
    mixed = [image for batch in seen if len(batch) == 8 for image in batch]
    assert any(not (plain == image).flatten(1).all(1).any() for image in mixed)


def test_auxiliary_classifiers_learn_with_their_weight() -> None:
    class Helped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
            self.aux, self.fc = nn.Linear(4, 9), nn.Linear(4, 9)

        def forward(self, pixels: Tensor) -> Any:
            early = self.early(pixels).relu()
            logits = self.fc(self.late(early).mean((2, 3)))
            return (logits, self.aux(early.mean((2, 3)))) if self.training else logits

    module = tuner(Helped())
    assert [extra.name for extra in module.classifiers.auxiliary] == ["aux"]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = next(iter(val_loader()))
    logits, extra = module.network(batch[0])
    expected = F.cross_entropy(logits, batch[1]) + 0.4 * F.cross_entropy(extra, batch[1])
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    module.training_step(batch, 0).backward()
    assert module.network.aux.weight.grad is not None
    fit(tuner(Helped(), mode="staged", unfreeze_at=[1]), max_epochs=2)


class TwoHeads(nn.Module):
    """A trunk of two stages and two heads, whose outputs are averaged or returned side by side."""

    def __init__(self, *, averaged: bool) -> None:
        super().__init__()
        self.early, self.late = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
        self.left, self.right = nn.Linear(4, 9), nn.Linear(4, 9)
        self.averaged = averaged

    def forward(self, pixels: Tensor) -> Any:
        features = self.late(self.early(pixels).relu()).relu().mean((2, 3))
        left, right = self.left(features), self.right(features)
        return (left + right) / 2 if self.averaged else {"left": left, "right": right}


@pytest.mark.parametrize("mode", ["head", "full", "staged"])
@pytest.mark.parametrize(
    ("averaged", "classifier", "learning"),
    [
        (True, None, {"head": {"left", "right"}, "full": {"left", "right", "early", "late"}}),
        (False, "right", {"head": {"right"}, "full": {"right", "early", "late"}}),
        # An auxiliary head helps what is below it: it learns with the uppermost stage there.
        (False, ["right", "left"], {"head": {"right"}, "full": {"left", "right", "early", "late"}}),
    ],
    ids=["averaged", "one", "auxiliary"],
)
def test_networks_of_two_heads_are_tuned_in_every_mode(
    mode: Any, averaged: bool, classifier: Any, learning: dict[str, set[str]]
) -> None:
    torch.manual_seed(0)
    network = TwoHeads(averaged=averaged)
    module = tuner(network, mode=mode, classifier=classifier, unfreeze_at=[1, 2] if mode == "staged" else None)
    batch = next(iter(val_loader()))
    output = network(batch[0])
    expected = F.cross_entropy(output if averaged else output["right"], batch[1])
    if classifier == ["right", "left"] and mode == "full":
        expected = expected + 0.4 * F.cross_entropy(output["left"], batch[1])
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    del module.log
    seen = fit(module, max_epochs=3)
    moved = {key.split(".")[0] for key in differing(seen.weights[0], seen.weights[-1])}
    assert moved == learning["head" if mode == "head" else "full"]
    if mode == "staged":
        first = {key.split(".")[0] for key in differing(seen.weights[0], seen.weights[1])}
        assert first == learning["head"]
    assert module(batch[0]).shape == (len(batch[0]), 3)


def test_averaged_heads_are_not_cached() -> None:
    with pytest.raises(ValueError, match=r"cache_features=True: .*\['left', 'right'\] together.*cache_features=False"):
        tuner(TwoHeads(averaged=True), mode="head", cache_features=True)


class Fixed(nn.Module):
    """Says what its images' first pixel says."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(1, classes)
        self.classes = classes

    def forward(self, pixels: Tensor) -> Tensor:
        said = F.one_hot(pixels[:, 0, 0, 0].long(), self.classes).float()
        logits: Tensor = self.fc(pixels.mean((1, 2, 3))[:, None]) * 0 + said
        return logits


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_measures_are_those_of_plain_counting(classes: int) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])  # the last classes have no images
    said = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    pixels = said[:, None, None, None].expand(-1, 1, 4, 4).float().contiguous()
    module = FineTuner(Fixed(classes), classes, image_size=(1, 4, 4), sinks=[])
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=3)
    (found,) = trainer().test(module, loader, verbose=False)
    assert found["test/accuracy"] == pytest.approx(4 / 7)
    assert found["test/mean_class_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert ("test/accuracy_top5" in found) == (classes == 6)
    assert found["test/loss"] > 0


def test_the_last_validations_confusion_matrix_is_drawn_at_the_end() -> None:
    sink = MemorySink()
    module = tuner(sinks=[sink], class_names=["a", "b", "c"])
    fit(module, max_epochs=2)
    ((step, report),) = sink.reports
    assert (step.epoch, step.stage) == (2, "fit")
    scalars = {item.name: item.value for item in report.items if hasattr(item, "value")}
    (found,) = trainer().validate(module, val_loader(), verbose=False)
    assert scalars["accuracy"] == pytest.approx(found["val/accuracy"])


def test_by_default_it_goes_to_the_runs_page(tmp_path: Path) -> None:
    module = tuner(sinks=None)
    fit(module, max_epochs=1, default_root_dir=tmp_path)
    assert len(list(tmp_path.rglob("cnnviz/*.html"))) == 1


def test_a_page_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "cnnviz").write_text("a file where the page's folder would be")
    module = tuner(sinks=None)
    run = trainer(max_epochs=1, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="PageSink cannot write to"):
        run.fit(module, train_loader(), val_loader())
    assert run.global_step == 0


def test_a_sink_that_cannot_show_is_refused_before_training() -> None:
    module = tuner(sinks=[WandbSink()])
    before = weights(module)
    with pytest.raises(ValueError, match="WandbSink found no WandbLogger"):
        fit(module, max_epochs=1)
    assert differing(before, weights(module)) == []


# Checkpoints and what is handed on


def test_a_checkpoint_of_a_named_network_loads_without_its_weights_file(tmp_path: Path) -> None:
    torch.save(make_network("squeezenet1_1").state_dict(), tmp_path / "w.pt")
    module = FineTuner("squeezenet1_1", 3, weights=str(tmp_path / "w.pt"), image_size=(3, 32, 32), sinks=[])
    runner = trainer(max_epochs=1, limit_train_batches=1)
    pixels = TensorDataset(torch.rand(2, 3, 32, 32), torch.tensor([0, 2]))
    runner.fit(module, DataLoader(pixels, batch_size=2), DataLoader(pixels, batch_size=2))
    runner.save_checkpoint(tmp_path / "m.ckpt")
    torch.load(tmp_path / "m.ckpt", weights_only=True)
    (tmp_path / "w.pt").unlink()
    loaded = FineTuner.load_from_checkpoint(tmp_path / "m.ckpt")
    assert differing(weights(module), weights(loaded)) == []
    assert loaded.hparams["image_size"] == [3, 32, 32]


def test_a_network_of_ones_own_is_no_stored_setting(tmp_path: Path) -> None:
    module = tuner(lr=0.01)
    assert "backbone" not in module.hparams
    runner = trainer(max_epochs=1)
    runner.fit(module, train_loader(), val_loader())
    runner.save_checkpoint(tmp_path / "m.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "m.ckpt", backbone=little_net(seed=4))
    assert loaded.lr == 0.01
    assert differing(weights(module.network), weights(loaded.network)) == []


def test_an_exported_backbone_is_a_weights_file_without_the_head(tmp_path: Path) -> None:
    module = tuner()
    module.export_backbone(tmp_path / "sub" / "backbone.pt")
    written = torch.load(tmp_path / "sub" / "backbone.pt", weights_only=True)
    assert written["about"]["left_out"] == ["17"]
    again = tuner(little_net(seed=8), num_classes=6, weights=str(tmp_path / "sub" / "backbone.pt"))
    mine, theirs = weights(module.network[:17]), weights(again.network[:17])
    assert differing(mine, theirs) == []
    assert not any(key.startswith("17") for key in written["state_dict"])


def test_fasterrcnn_trains_on_the_feature_layers() -> None:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator

    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=4), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    backbone = tuner(network, image_size=(3, 64, 64)).backbone_features("2")
    assert backbone.out_channels == 8
    detector = FasterRCNN(
        backbone,
        min_size=48,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(8 * 7 * 7, 16)),
        box_predictor=torch_box_predictor(16, 2),
    )
    pixels = [torch.rand(3, 48, 64), torch.rand(3, 56, 48)]
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    loss = sum(detector.train()(pixels, [target, target]).values())
    step(loss, network[0].weight, network[2].weight)


def torch_box_predictor(width: int, classes: int) -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    predictor: nn.Module = FastRCNNPredictor(width, classes)
    return predictor


def step(loss: Any, *parameters: Tensor) -> None:
    before = [parameter.detach().clone() for parameter in parameters]
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
    torch.optim.SGD(parameters, lr=0.1).step()
    assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))


def test_deeplab_trains_on_the_feature_layers() -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    module = tuner(little_net(norms=False))
    backbone = module.backbone_features({"6": "out"})
    assert backbone.channels == {"out": 6}
    model = DeepLabV3(backbone, DeepLabHead(6, 4))
    masks = model.train()(torch.rand(2, 1, 20, 26))["out"]
    assert masks.shape == (2, 4, 20, 26)
    step(F.cross_entropy(masks, torch.randint(0, 4, (2, 20, 26))), module.network[0].weight, module.network[6].weight)


def test_features_are_the_layers_outputs_and_leave_no_hooks() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(400, 2)
    )
    module = tuner(network)
    pixels = torch.rand(2, *SIZE)
    found = module.backbone_features("conv")(pixels)
    assert list(found) == ["0", "2"]
    assert torch.equal(found["0"], network[0](pixels))
    assert torch.equal(found["2"], network[:3](pixels))
    assert not any(part._forward_hooks for part in network.modules())


# Features that are computed once


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_cached_features_give_the_weights_of_the_uncached_run(head: Any, shuffle: bool) -> None:
    found = []
    for cached in (False, True):
        module = tuner(mode="head", head=head, lr=0.05, cache_features=cached)
        measured: list[float] = []

        class Measures(pl.Callback):
            def on_validation_end(self, trainer: Any, pl_module: Any, measured: Any = measured) -> None:
                measured.append(float(trainer.callback_metrics["val/loss"]))

        seen = fit(module, loader=train_loader(shuffle=shuffle), callbacks=[Measures()])
        found.append((seen.weights[-1], measured))
    (plain, losses), (kept, cached_losses) = found
    assert all(torch.allclose(value, kept[key], rtol=0, atol=1e-6) for key, value in plain.items())
    assert cached_losses == pytest.approx(losses, abs=1e-6)
    assert losses[-1] < losses[0]


def test_each_image_runs_through_the_backbone_once() -> None:
    module, seen = tuner(mode="head", cache_features=True), []
    loader = train_loader()

    class Counting(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.network[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))

    runner = trainer(callbacks=[Counting()], num_sanity_val_steps=0)
    runner.fit(module, loader, val_loader())
    assert sum(seen) == 24 + 15 + 2  # and two to see what follows the classifier
    assert runner.train_dataloader is loader


def test_validation_is_left_alone_where_a_callback_looks_on() -> None:
    batches = []

    class Looking(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            batches.append(batch[0].shape[1:])

    fit(tuner(mode="head", cache_features=True), callbacks=[Looking()])
    assert set(batches) == {torch.Size(SIZE)}


@pytest.mark.parametrize("tail", ["mean", "rectified mean"])
def test_what_follows_a_convolution_that_classifies_is_followed(tail: str) -> None:
    found = []
    for cached in (False, True):
        torch.manual_seed(0)
        last = [nn.ReLU(inplace=True)] if tail != "mean" else []
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 9, 1), *last, nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        found.append(fit(tuner(network, mode="head", lr=0.1, cache_features=cached)).weights[-1])
    assert all(torch.allclose(value, found[1][key], rtol=0, atol=1e-6) for key, value in found[0].items())


class Changing(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return torch.rand(SIZE), index % 3


class Said(TensorDataset):
    augmented = True


@pytest.mark.parametrize("dataset", [Changing(), Said(*images().tensors)])
def test_augmentation_cannot_be_cached(dataset: Any) -> None:
    with pytest.raises(ValueError, match=r"training images change from one epoch to the next.*augment=\"none\""):
        fit(tuner(mode="head", cache_features=True), loader=DataLoader(dataset, batch_size=8))


def test_images_without_an_index_cannot_be_cached() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(images())

    module = tuner(mode="head", cache_features=True, scheduler=None)
    with pytest.raises(ValueError, match="images must be told apart"):
        fit(module, loader=DataLoader(Stream(), batch_size=8))


def test_a_network_that_goes_on_behind_its_classifier_cannot_be_cached() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(196, 3), nn.Tanh())
    with pytest.raises(ValueError, match="goes on behind its classifier '1' in a way that is not understood"):
        fit(tuner(network, mode="head", cache_features=True))


# Networks that end in probabilities


class InEvalAlone(nn.Module):
    """A softmax that training does without, as some detectors and classifiers have it."""

    def forward(self, values: Tensor) -> Tensor:
        return values if self.training else values.softmax(1)


class SpelledOut(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        powers = values.exp()
        return powers / powers.sum(1, keepdim=True)


ENDS: dict[str, nn.Module] = {
    "softmax": nn.Softmax(1),
    "sigmoid": nn.Sigmoid(),
    "log_softmax": nn.LogSoftmax(1),
    "in eval alone": InEvalAlone(),
    "spelled out": SpelledOut(),
}


def test_a_certain_and_right_softmax_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(196, 3), nn.Softmax(1))
    module = tuner(network).eval()
    monkeypatch.setattr(module, "log", lambda *_, **__: None)  # it is in no trainer
    with torch.no_grad():
        network[1].weight.zero_()  # type: ignore[union-attr,operator]
        network[1].bias.copy_(torch.tensor([60.0, 0.0, -60.0]))  # type: ignore[union-attr,operator]
    pixels, labels = torch.rand(4, *SIZE), torch.zeros(4, dtype=torch.int64)
    as_logits = float(F.cross_entropy(network(pixels), labels).detach())
    assert as_logits == pytest.approx(0.5514, abs=1e-4)
    assert float(module.training_step((pixels, labels), 0).detach()) == pytest.approx(0, abs=1e-6)
    assert float(F.cross_entropy(module(pixels), labels + 1).detach()) == pytest.approx(60, rel=1e-4)


@pytest.mark.parametrize("end", list(ENDS))
def test_probabilities_at_the_end_do_not_change_what_is_learned(end: str) -> None:
    found = []
    options: dict[str, Any] = {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 0.5], "lr": 0.05, "optimizer": "SGD"}
    for tail in ([], [ENDS[end]]):
        network = nn.Sequential(*little_net(norms=False), *tail)
        measured: list[float] = []

        class Measures(pl.Callback):
            def on_validation_end(self, trainer: Any, pl_module: Any, measured: Any = measured) -> None:
                measured.append(float(trainer.callback_metrics["val/loss"]))

        seen = fit(tuner(network, **options), callbacks=[Measures()])
        found.append((seen.weights[-1], measured))
    (plain, losses), (kept, own_losses) = found
    assert all(torch.allclose(value, kept[key], rtol=0, atol=1e-4) for key, value in plain.items())
    assert own_losses == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("end", ["softmax", "sigmoid", "in eval alone"])
def test_features_of_a_network_that_ends_in_probabilities_are_cached(end: str) -> None:
    found = []
    for cached in (False, True):
        network = nn.Sequential(*little_net(), ENDS[end])
        found.append(fit(tuner(network, mode="head", lr=0.1, cache_features=cached)).weights[-1])
    assert all(torch.allclose(value, found[1][key], rtol=0, atol=1e-4) for key, value in found[0].items())


def test_a_mixed_batch_counts_alike_with_and_without_a_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for tail in ([], [nn.Softmax(1)]):
        module = tuner(nn.Sequential(*little_net(norms=False), *tail), mixup=0.4).train()
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        torch.manual_seed(3)
        losses.append(float(module.training_step(next(iter(val_loader())), 0).detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# What is refused before training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "heads"}, r"mode='heads'.*Did you mean 'head'"),
        ({"unfreeze_at": [1]}, r'unfreeze_at=\[1\] is for mode="staged"; the mode is "full"'),
        ({"mode": "staged"}, "unfreeze_at=None: give the epochs"),
        ({"mode": "staged", "unfreeze_at": [2, 1]}, r"unfreeze_at=\[2, 1\]: give the epochs, ascending"),
        ({"mode": "staged", "unfreeze_at": [1, 2, 3, 4]}, "unfreezes 4 stages, but Sequential has 3 below its head"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0: give a factor in \(0, 1\]"),
        ({"layer_decay": 1.5}, r"layer_decay=1.5: give a factor in \(0, 1\]"),
        ({"num_classes": 1}, "num_classes=1: a classifier has 2 classes or more"),
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 entries for num_classes=3"),
        ({"class_names": ["a"]}, "class_names has 1 entries for num_classes=3"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1: give 0 or more"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"mixup": -0.1}, "mixup=-0.1"),
        ({"optimizer": "AdamV"}, r"optimizer='AdamV'.*Did you mean 'Adam"),
        ({"optimizer": "adamw"}, r"optimizer='adamw'.*Did you mean 'AdamW'"),
        ({"optimizer": "nowhere.Adam"}, "cannot import 'nowhere'"),
        ({"optimizer_options": {"momentum_": 1}, "optimizer": "SGD"}, "no option 'momentum_'. Did you mean 'momentum'"),
        ({"scheduler": "StepLt"}, r"scheduler='StepLt'.*Did you mean 'StepLR'"),
        ({"scheduler": "cosin"}, r"scheduler='cosin'.*Did you mean 'cosine'"),
        ({"scheduler": "StepLR", "scheduler_options": {"step": 1}}, "no option 'step'. Did you mean 'step_size'"),
        ({"scheduler_options": {"T_max": 3}}, "scheduler='cosine' has none"),
        ({"cache_features": True}, r'cache_features=True needs mode="head"'),
        ({"cache_features": True, "mode": "head", "mixup": 0.2}, "images that are mixed"),
        ({"image_size": [14, 14]}, r"image_size=\[14, 14\]: give \(channels, height, width\)"),
        ({"weights": "nowhere.pt"}, "nowhere.pt.*there is no such file"),
    ],
)
def test_wrong_arguments_raise_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuner(**options)


def test_a_warm_up_as_long_as_the_run_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="warmup_epochs=2 is no shorter than the run of max_epochs=2"):
        fit(tuner(warmup_epochs=2), max_epochs=2)


def test_a_run_without_an_end_has_no_cosine() -> None:
    with pytest.raises(ValueError, match="scheduler='cosine' needs an end"):
        trainer(max_epochs=-1).fit(tuner(), train_loader(), val_loader())


def test_an_epoch_that_is_never_reached_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lightning_cnnviz"):
        fit(tuner(mode="staged", unfreeze_at=[7]), max_epochs=1)
    assert "the run ends before epoch 7" in caplog.text
