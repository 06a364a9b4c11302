"""A trained network is explored without training, and stays as it was."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from PIL import Image
from sinks.harness import listed, page_text
from sinks.offline_run import keep_wandb_inside, read_offline_run
from torch import Tensor, nn

from lightning_cnnviz import OcclusionMonitor
from lightning_cnnviz.cli import main
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.explore import VIEWS, explore, find_exploration_images, has_random_weights, load_network
from lightning_cnnviz.finetune.module import FineTuner
from lightning_cnnviz.record.store import Record

pytestmark = pytest.mark.filterwarnings("ignore:The 'validate_dataloader' does not have many workers")


class Little(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images).mean((2, 3)))
        return logits


def write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "images" / name, 6, number)
    return tmp_path / "images"


def test_every_view_is_on_one_page_and_the_network_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Little().train()
    network.features[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    made = explore(network, images, tmp_path / "out")
    assert made.views == tuple(VIEWS)
    assert made.left_out == {}
    page = page_text(made.page)
    for view in ("filters", "top_patches", "deconvnet", "invariance", "maximization"):
        assert view in page
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, True, True, True, True, True]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_images_without_classes_are_explored_without_probes(folder: Path, tmp_path: Path) -> None:
    images = find_exploration_images(folder / "cat", input_size=(3, 16, 16), most=3)
    assert len(images) == 3
    made = explore(Little(), images, tmp_path / "out", views=["top_patches", "occlusion"], layers=["features.0"])
    assert made.views == ("top_patches", "occlusion")
    with pytest.raises(ValueError, match="layer_probe: it needs images of two classes or more"):
        explore(Little(), images, tmp_path / "out", views=["layer_probe"])


@pytest.mark.parametrize(("classes", "labeled"), [(2, True), (3, False), (1, True)])
def test_labels_count_only_where_they_can_be_the_networks_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, labeled: bool
) -> None:
    from lightning_cnnviz.callbacks import occlusion

    seen: list[Any] = []
    real = occlusion.OcclusionMonitor.check

    def spy(self: Any, network: Any) -> None:
        seen.append((self.sample.labels is not None, self.display.class_names))
        real(self, network)

    monkeypatch.setattr(occlusion.OcclusionMonitor, "check", spy)
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    explore(Little(classes), images, tmp_path / "out", views=["occlusion"])
    ((has_labels, names),) = seen
    assert has_labels == labeled
    assert (list(names) == ["cat", "dog"]) if labeled else not names


def test_a_network_without_class_scores_has_the_other_views(folder: Path, tmp_path: Path) -> None:
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    network = Little().features
    made = explore(network, images, tmp_path / "out", views=["filters", "top_patches"])
    assert made.views == ("filters", "top_patches")
    with pytest.raises(ValueError, match="occlusion: the network returns no scores of classes, and no values"):
        explore(network, images, tmp_path / "out", views=["occlusion"])


class Painter(nn.Module):
    """Gives each pixel one of two classes, as many as there are folders."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.features(images)}


@pytest.mark.parametrize(
    ("network", "kind", "named"),
    [
        (Little(1), "binary", True),
        (nn.Sequential(Little(1), nn.Sigmoid()), "binary", True),
        (Painter(), "segmentation", False),
    ],
    ids=["one logit", "one probability", "a class for each pixel"],
)
def test_views_of_scores_read_what_the_network_tells(
    folder: Path, tmp_path: Path, network: nn.Module, kind: str, named: bool
) -> None:
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    views = ["invariance", "occlusion", "attribution"]
    made = explore(network, images, tmp_path / "out", views=views)
    assert (made.views, made.left_out) == (tuple(views), {})
    looks = {look.identity.view: look for look in Record.within(tmp_path / "out").looks()}
    shown = looks["occlusion"].display.indices
    with torch.no_grad():
        output = network(torch.stack([images[place][0] for place in shown]))
    result = looks["occlusion"].result
    found = (result.results[0] if isinstance(result, ByHead) else result).untouched
    assert found.task.kind == kind
    assert found.labeled == named
    if kind == "binary":
        yes = output[:, 0] if isinstance(network, nn.Sequential) else output[:, 0].sigmoid()
        expected = torch.where(torch.tensor(images.targets)[[*shown]] == 1, yes, 1 - yes)
        assert found.probabilities.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    else:
        seen = output["out"].argmax(1).flatten(1)
        for name, of_class in zip(result.names, result.results, strict=True):
            those = (seen == int(name.removeprefix("class "))).any(1).nonzero().flatten()
            assert of_class.untouched.numbers.tolist() == those.tolist()


def test_one_score_and_images_of_many_classes_are_a_value(folder: Path, tmp_path: Path) -> None:
    write_images(folder / "fox", 6, 2)
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    explore(Little(1), images, tmp_path / "out", views=["occlusion"])
    (look,) = Record.within(tmp_path / "out").looks()
    assert look.result.untouched.quantity == "value"


def test_images_are_spread_over_the_data_and_read_as_the_network_wants(folder: Path) -> None:
    whole = find_exploration_images(folder, input_size=(1, 12, 14), mean=[0.5], std=[0.25])
    some = find_exploration_images(folder, input_size=(1, 12, 14), mean=[0.5], std=[0.25], most=4)
    assert whole[0][0].shape == (1, 12, 14)
    assert some.targets == [0, 0, 1, 1]
    assert torch.equal(some[3][0], whole[11][0])
    assert -2.0 <= float(whole[0][0].min()) < float(whole[0][0].max()) <= 2.0


def test_what_cannot_be_had_is_named(folder: Path, tmp_path: Path) -> None:
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    with pytest.raises(ValueError, match=r"no view is called 'filter'\. Did you mean 'filters'"):
        explore(Little(), images, tmp_path / "out", views=["filter"])
    with pytest.raises(ValueError, match="Linear has no convolution"):
        explore(nn.Linear(2, 2), images, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no layer of Little matches 'features\.9'"):
        explore(Little(), images, tmp_path / "out", layers=["features.9"])
    with pytest.raises(ValueError, match="Little does not take images of shape"):
        explore(Little(), find_exploration_images(folder, input_size=(1, 16, 16)), tmp_path / "out")
    with pytest.raises(ValueError, match=r"input_size=\(2, 16, 16\): give channels"):
        find_exploration_images(folder, input_size=(2, 16, 16))
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        find_exploration_images(folder / "nothing")
    with pytest.raises(ValueError, match="0 images: give 1 or more"):
        find_exploration_images(folder, most=0)


def test_networks_by_name_with_weights_and_from_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = torchvision.models.squeezenet1_1(weights=None)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "trained.pt")
    found = load_network("squeezenet1_1", str(tmp_path / "trained.pt"), (3, 64, 64))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in found.state_dict().items())
    tuner = FineTuner("squeezenet1_1", 3, mode="head", image_size=(3, 64, 64))
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    trainer.strategy.connect(tuner)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    found = load_network(str(tmp_path / "tuned.ckpt"))
    assert all(torch.equal(value, tuner.network.state_dict()[name]) for name, value in found.state_dict().items())
    assert not found.training
    torch.save(tuner.network.state_dict(), tmp_path / "tuned.pt")
    with pytest.raises(ValueError, match="has no classifier of as many classes as squeezenet1_1"):
        load_network("squeezenet1_1", str(tmp_path / "tuned.pt"), (3, 64, 64))
    with pytest.raises(ValueError, match="is a checkpoint, which has its own"):
        load_network(str(tmp_path / "tuned.ckpt"), "DEFAULT")
    with pytest.raises(ValueError, match="is no checkpoint of a FineTuner"):
        load_network(str(tmp_path / "tuned.pt"))
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_network(str(tmp_path / "text.ckpt"))


SOME = ("layer_table", "filters", "top_patches", "occlusion")


def seeded() -> Little:
    torch.manual_seed(0)
    return Little()


def explored(folder: Path, out: Path, network: Little | None = None, **options: Any) -> Any:
    options = {"views": SOME} | options
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    return explore(seeded() if network is None else network, images, out, **options)


def looks_on(page: Path) -> dict[str, list[tuple[int, int]]]:
    """By view, of each series on the page its run and how many looks it has."""
    return {
        view: [(run, len(looks)) for (_, run, _), looks in series.items()]
        for view, series in listed(page.parent).items()
    }


def once(views: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    return {view: [(1, 1)] for view in views}


def kept(out: Path) -> list[str]:
    return [look.identity.view for look in Record(out / "record").looks()]


def test_the_same_exploration_again_computes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explored(folder, tmp_path / "out").reused == ()
    monkeypatch.setattr(pl.Trainer, "validate", None)
    again = explored(folder, tmp_path / "out")
    assert again.reused == again.views == SOME
    assert sorted(kept(tmp_path / "out")) == sorted(SOME)
    assert looks_on(again.page) == once(SOME)


def test_an_interrupted_exploration_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OcclusionMonitor, "experiment", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            explored(folder, tmp_path / "out")
    before = kept(tmp_path / "out")
    assert sorted(before) == ["filters", "layer_table", "top_patches"]
    made = explored(folder, tmp_path / "out")
    assert made.reused == SOME[:3]
    assert kept(tmp_path / "out") == [*before, "occlusion"]
    assert looks_on(made.page) == once(SOME)


def test_a_page_that_is_gone_is_drawn_from_the_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = looks_on(explored(folder, tmp_path / "out").page)
    (tmp_path / "out" / "record").rename(tmp_path / "record")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "record").rename(tmp_path / "out" / "record")
    monkeypatch.setattr(pl.Trainer, "validate", None)
    assert looks_on(explored(folder, tmp_path / "out").page) == whole


def test_a_look_that_is_damaged_is_taken_again(folder: Path, tmp_path: Path) -> None:
    page = explored(folder, tmp_path / "out").page
    for path in (page.with_name("looks"), page.with_name("pictures"), tmp_path / "out" / "record" / "packs"):
        shutil.rmtree(path)
    made = explored(folder, tmp_path / "out")
    assert "filters" not in made.reused
    assert looks_on(made.page) == once(SOME)


def test_what_is_taken_from_the_record_is_in_the_new_wandb_run_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    keep_wandb_inside(tmp_path, monkeypatch)
    wandb.teardown()  # the mode is remembered until then
    views = ("filters", "top_patches")
    explored(folder, tmp_path / "out", views=views)
    monkeypatch.setattr(pl.Trainer, "validate", None)
    assert explored(folder, tmp_path / "out", views=views, wandb="exploration").reused == views
    rows = read_offline_run(tmp_path / "out")
    wandb.teardown()
    parts = [key.split("/") for row in rows for key in row]
    assert {part[1] for part in parts if part[0] == "validate"} == {"filters", "top_patches"}
    assert looks_on(tmp_path / "out" / "index.html") == once(views)


def test_other_weights_are_looked_at_anew(folder: Path, tmp_path: Path) -> None:
    explored(folder, tmp_path / "out")
    network = seeded()
    with torch.no_grad():
        network.head.bias[0] += 0.001
    made = explored(folder, tmp_path / "out", network)
    assert made.reused == ()
    assert looks_on(made.page) == {view: [(1, 1), (2, 1)] for view in SOME}


def test_other_images_are_looked_at_anew(folder: Path, tmp_path: Path) -> None:
    explored(folder, tmp_path / "out")
    file = folder / "cat" / "3.png"
    with Image.open(file) as image:
        changed = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed.save(file)
    made = explored(folder, tmp_path / "out")
    assert made.reused == ()
    assert looks_on(made.page) == {view: [(1, 1), (2, 1)] for view in SOME}
    scaled = find_exploration_images(folder, input_size=(3, 16, 16), mean=[0.4])
    assert explore(seeded(), scaled, tmp_path / "out", views=SOME).reused == ()


def test_other_arguments_are_looks_beside_the_old_ones(folder: Path, tmp_path: Path) -> None:
    explored(folder, tmp_path / "out")
    made = explored(folder, tmp_path / "out", layers=["features.3"])
    assert made.reused == ("layer_table", "filters", "occlusion")
    assert looks_on(made.page) == once(SOME) | {"top_patches": [(1, 1), (2, 1)]}
    assert explored(folder, tmp_path / "out", layers=["features.3"]).reused == SOME
    assert explored(folder, tmp_path / "out", views=["filters", "correlation"]).reused == ("filters",)


def test_as_many_feature_maps_are_shown_as_asked_for(folder: Path, tmp_path: Path) -> None:
    views = ["top_patches", "deconvnet"]
    channels = Little().features[0].out_channels  # type: ignore[union-attr]
    for features, shown in (("all", channels), (2, 2)):
        made = explored(folder, tmp_path / str(features), views=views, layers=["features.0"], features=features)
        for look in Record(made.page.parent / "record").looks():
            result = look.result
            patches = result if isinstance(result, TopPatches) else result[0]
            (layer,) = patches.layers
            assert layer.features == tuple(range(shown))
            assert look.identity.data.sentence == "12 images of images, validation images"
    with pytest.raises(ValueError, match=r'features=0: give a number of at least 1, or "all"'):
        explored(folder, tmp_path / "none", features=0)


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--input", "3", "48", "48"]
    out = ["--out", str(tmp_path / "out")]
    given = ["explore", "squeezenet1_1", "--data", str(folder / "cat"), *size, *out]
    assert main([*given, "--views", "layer_table", "filters"]) == 0
    said = capsys.readouterr()
    assert "Page, to open in a browser" in said.out
    assert "squeezenet1_1 HAS RANDOM WEIGHTS" in said.err
    assert '"network":"SqueezeNet, weights random, not trained"' in page_text(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "index.html").is_file()
    assert main([*given, "--views", "layer_table"]) == 0  # its weights are random, and so are others
    assert "As before" not in capsys.readouterr().out
    seeded_before = torch.random.get_rng_state()
    for again in (False, True):
        torch.manual_seed(3)
        assert main([*given, "--views", "filters"]) == 0
        assert ("As before, since weights, images and arguments are: filters" in capsys.readouterr().out) == again
    torch.random.set_rng_state(seeded_before)
    blocked = tmp_path / "a_file"
    blocked.touch()
    for wrong, message in (
        (["--views", "filter"], "Did you mean 'filters'"),
        (["--weights", "nothing.pt"], "there is no such file"),
        (["--layers", "features.99"], "no layer of SqueezeNet matches 'features.99'"),
        (["--features", "most"], "'most' is not a whole number of at least 1, or all"),
        (["--mean", "0.5", "0.5"], "mean=[0.5, 0.5]: give one value, or 3, one a channel"),
        (["--out", str(blocked / "page")], f"out='{blocked / 'page'}' cannot be written"),
        (["--data", "CIFAR10", "--root", str(tmp_path)], f"CIFAR10 is not in root='{tmp_path}'"),
        (["--data", "no_folder"], "data='no_folder': there is no such folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*given, *wrong])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explore", "r3d_18", *given[2:]])
    assert "'r3d_18' takes clips (N, C, T, H, W): views and training here are of images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "weights", "random"),
    [("resnet18", None, True), ("timm/resnet18", None, True), ("resnet18", "DEFAULT", False), ("a:b", None, False)],
)
def test_weights_are_random_where_a_network_by_name_has_none(name: str, weights: str | None, random: bool) -> None:
    assert has_random_weights(name, weights) == random
    assert not has_random_weights(__file__, None)  # as a checkpoint


def test_a_network_of_clips_is_told_what_views_are_of(folder: Path, tmp_path: Path) -> None:
    images = find_exploration_images(folder, input_size=(3, 16, 16))
    with pytest.raises(ValueError, match=r"no convolution \(nn.Conv2d\): its convolutions are Conv3d, of .* clips"):
        explore(nn.Sequential(nn.Conv3d(3, 2, 3)), images, tmp_path / "out")
