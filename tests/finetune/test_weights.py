"""Weights come from files of every usual form, and fit or are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_cnnviz.finetune import networks
from lightning_cnnviz.finetune.heads import find_classifiers
from lightning_cnnviz.finetune.networks import make_network
from lightning_cnnviz.finetune.weights import WeightsError, load_weights, read_weights, weights_file

SIZE = (1, 8, 8)


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


def filled(classes: int = 5) -> Net:
    torch.manual_seed(7)
    net = Net(classes)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape))
    return net


def load(path: Path) -> Net:
    torch.manual_seed(0)
    net = Net()
    given, (_, part) = read_weights(net, str(path)), weights_file(str(path))
    load_weights(net, given, find_classifiers(net, SIZE), f"weights='{path}'", part=part)
    return net


def same(net: nn.Module, other: nn.Module, *, but: str = "nothing") -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in net.state_dict().items() if not key.startswith(but))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "network.", "backbone.", "_orig_mod.", "a.module.b."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_prefixes_and_wrappers_are_understood(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    net = filled()
    state: Any = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt"), net)


def test_a_lightning_checkpoint_is_understood_with_what_it_holds_beside(tmp_path: Path) -> None:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.classifier_net = nn.ModuleDict({"inner": filled()})
            self.register_buffer("class_weights", torch.ones(3))

        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    module = Module()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "w.ckpt")
    assert same(load(tmp_path / "w.ckpt"), module.classifier_net["inner"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net = filled()
    safetensors.save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors"), net)


@pytest.mark.parametrize("saved", ["other classes", "an mlp", "none"])
def test_another_classifier_is_left_out_with_a_word(
    saved: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = filled(9)
    if saved == "an mlp":
        net.fc = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))  # type: ignore[assignment]
    state = {key: value for key, value in net.state_dict().items() if saved != "none" or not key.startswith("fc")}
    torch.save(state, tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "lightning_cnnviz"):
        loaded = load(tmp_path / "w.pt")
    assert same(loaded.features, net.features)
    assert "classifier 'fc' do not fit and are left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.0.bias"), r"1 of 9 tensors are missing \('features.0.bias'\)"),
        (lambda state: state.update({"features.0.bia": torch.ones(4)}), r"1 of its 10 are not the network's"),
        (
            lambda state: state.update({"features.0.biases": state.pop("features.0.bias")}),
            r"'features.0.biases': Did you mean 'features.0.bias'",
        ),
        (
            lambda state: state.update({"features.0.weight": torch.ones(4, 3, 3, 3)}),
            r"'features.0.weight' \(4, 3, 3, 3\) for \(4, 1, 3, 3\)",
        ),
    ],
)
def test_anything_else_that_does_not_fit_is_refused_and_counted(change: Any, message: str, tmp_path: Path) -> None:
    state = dict(filled().state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "w.pt")


def test_a_file_without_counters_of_batches_fits(tmp_path: Path) -> None:
    state = {key: value for key, value in filled().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt"), filled(), but="features.1.num")


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (Path.write_text, (tmp_path / "ran", "yes"))

    torch.save({"state_dict": filled().state_dict(), "more": Bad()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"torch\.save\(torch\.load\(FILE, weights_only=False\)\.state_dict\(\)"):
        load(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()
    torch.save(filled(), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match="a pickled module, perhaps"):
        load(tmp_path / "module.pt")


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt' holds no state dict but the keys 'epoch'"):
        load(tmp_path / "w.pt")
    (tmp_path / "text.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"text\.pt' cannot be read"):
        load(tmp_path / "text.pt")
    (tmp_path / "text.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load(tmp_path / "text.safetensors")
    with pytest.raises(WeightsError, match="there is no such file"):
        load(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("squeezenet1_0", "IMAGENET1K_V2", r'called "DEFAULT", "IMAGENET1K_V1"\. Did you mean'),
        ("timm/resnet18", "a1_in2k", r"Did you mean 'a1_in1k"),
        (Net(), "DEFAULT", "a network of your own has no weights by name"),
    ],
)
def test_unknown_names_of_weights_are_answered_with_the_closest(backbone: Any, weights: str, message: str) -> None:
    if isinstance(backbone, str) and backbone.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(WeightsError, match=message):
        read_weights(backbone, weights)


def test_a_download_that_fails_names_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"cannot be downloaded: https://.*no route to host.*weights=FILE"):
        read_weights("squeezenet1_0", "DEFAULT")
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"timm/resnet18 cannot be downloaded.*weights=FILE"):
        read_weights("timm/resnet18", "DEFAULT")


def test_torchvisions_own_weights_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, **_: Any) -> dict[str, Tensor]:
        asked.append(url)
        return make_network("squeezenet1_1", values=False).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert "features.0.weight" in read_weights("squeezenet1_1", "IMAGENET1K_V1")
    assert len(asked) == 1
    assert "squeezenet1_1" in asked[0]


def test_names_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no network is called 'squeezenet1'\. Did you mean 'squeezenet1_"):
        make_network("squeezenet1")
    assert isinstance(make_network(f"{__name__}:Net"), Net)
    real = networks.importlib.import_module

    def without_timm(name: str) -> Any:
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return real(name)

    monkeypatch.setattr(networks.importlib, "import_module", without_timm)
    with pytest.raises(ImportError, match="pip install timm"):
        make_network("timm/resnet18")


# Several networks in one file


def below(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in state.items()}


def of_two(first: str, second: str, other: nn.Module | None = None) -> dict[str, Tensor]:
    """The same keys twice; the alphabet would choose."""
    torch.manual_seed(1)
    nets = {first: filled(), second: Net() if other is None else other}
    return {f"{name}{key}": value.clone() for name, net in nets.items() for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("student.", "teacher."),
        ("model.", "model_ema.module."),
        ("", "ema."),
    ],
)
def test_which_of_two_networks_is_meant_has_to_be_said(first: str, second: str, tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    torch.save({"state_dict": of_two(first, second)}, path)
    with pytest.raises(WeightsError, match=r'holds the network 2 times, .*weights="FILE:') as raised:
        load(path)
    assert all(f"'{name.rstrip('.')}'" in str(raised.value) for name in (first, second) if name)
    assert same(load(Path(f"{path}:{first.rstrip('.') or '.'}")), filled())


def test_wrappers_that_hold_a_network_each_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    torch.save({"student": filled().state_dict(), "teacher": Net().state_dict(), "epoch": 3}, path)
    with pytest.raises(WeightsError, match="under 'student', 'teacher'"):
        load(path)
    assert same(load(Path(f"{path}:student")), filled())
    with pytest.raises(WeightsError, match=r"name begins with 'pupil\.'; they begin with \['student', 'tea"):
        load(Path(f"{path}:pupil"))


def test_a_teacher_with_another_head_is_a_tie_too(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    state = of_two("student.", "teacher.")
    torch.save({key: value for key, value in state.items() if not key.startswith("student.fc")}, path)
    with pytest.raises(WeightsError, match="under 'student', 'teacher'"):
        load(path)


def test_one_network_under_two_names_is_no_tie(tmp_path: Path) -> None:
    torch.save({"state_dict": of_two("net.", "model.", filled())}, tmp_path / "twice.pt")
    assert same(load(tmp_path / "twice.pt"), filled())


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda one, two: {**one, "ema": two}, [".", "ema"]),
        (lambda one, two: {"model": {"state_dict": one}, "teacher": two}, ["model.state_dict", "teacher"]),
        (lambda one, two: {"state_dict": one, "ema": {"decay": 0.9, "shadow": two}}, ["state_dict", "ema.shadow"]),
        (lambda one, two: {"epoch": 3, "state_dict": {**one, "ema": two}}, [".", "ema"]),
        (lambda one, two: {"models": [one, two]}, ["models.0", "models.1"]),
        (lambda one, two: {"model": one, "average": {"state_dict": {"net": two}}}, ["model", "average"]),
        (lambda one, two: {"state_dict": one, "callbacks": {"EMA": {"weights": two}}}, ["state_dict", "callbacks"]),
        (lambda one, two: {"state_dict": {**below("s", one), **below("t", two)}, "ema": one}, ["s", "t"]),
    ],
)  # fmt: skip
def test_networks_at_any_depth_of_a_file_are_told_apart(content: Any, names: list[str], tmp_path: Path) -> None:
    path, nets = tmp_path / "two.pt", (filled(), Net())
    optimizer = {"state": {0: {"exp_avg": torch.ones(4, 1, 3, 3)}}, "param_groups": [{"params": [0]}]}
    torch.save({**content(*[net.state_dict() for net in nets]), "optimizer": optimizer}, path)
    with pytest.raises(WeightsError, match=r'holds the network \d times, .*weights="FILE:'):
        load(path)
    for name, net in zip(names, nets, strict=True):
        assert same(load(Path(f"{path}:{name}")), net)


def test_the_state_of_an_optimizer_is_no_second_network(tmp_path: Path) -> None:
    net = filled()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    scores = {"best": torch.tensor(0.5)}
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "scores": scores}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt"), net)
