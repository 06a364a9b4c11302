"""Two networks beside each other, on a page."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sinks.harness import page_text
from test_explore import Little, write_images
from torch import nn

from lightning_cnnviz.cli import main
from lightning_cnnviz.compare import compare_networks
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.explore import find_exploration_images
from lightning_cnnviz.finetune.images import LabeledImages
from lightning_cnnviz.render.changed_units import changed_galleries, changed_units, other_units
from lightning_cnnviz.render.display import Display


@pytest.fixture
def images(tmp_path: Path) -> LabeledImages:
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "images" / name, 6, number)
    return find_exploration_images(tmp_path / "images", input_size=(3, 24, 24))


def pair() -> tuple[Little, Little]:
    """A network, and one whose second convolution has channels 0 and 1 exchanged, and channel 3 made anew."""
    torch.manual_seed(0)
    network = Little()
    other = copy.deepcopy(network)
    layer, changed = network.features[3], other.features[3]
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(changed, nn.Conv2d)
    with torch.no_grad():
        changed.weight[[0, 1]] = layer.weight[[1, 0]]
        changed.bias[[0, 1]] = layer.bias[[1, 0]]
        changed.weight[3] = torch.randn_like(changed.weight[3])
    return network, other


def test_channels_that_changed_stand_above_their_counterparts(images: LabeledImages, tmp_path: Path) -> None:
    network, other = pair()
    before = [parameter.clone() for parameter in (*network.parameters(), *other.parameters())]
    made = compare_networks(network, other, images, tmp_path / "out", channels=3, k=4)
    first, second = made.result.layers
    assert float(first.correlation.min()) == pytest.approx(1)
    assert set(changed_units(second, 3)) == {0, 1, 3}
    assert set(other_units(second, [0])) == {0, 1}
    batches = [torch.stack([images[place][0] for place in range(len(images))])]
    own = mine_top_patches(network, batches, ["features.3"], 4, features={"features.3": [0, 3]})
    theirs = mine_top_patches(other, batches, ["features.3"], 4, features={"features.3": [0, 1, 2, 3, 4, 5]})
    (gallery,) = changed_galleries(made.result, own, theirs, Display())
    row = next(row for row in gallery.rows if row.channel == 0)
    kinds = [tile.shows for tile in row.tiles]
    assert kinds == 4 * ["first network"] + 4 * ["other network, same channel"] + 4 * ["other network, best match"]
    assert row.numbers["best match"] == 1
    assert row.numbers["best match r"] == pytest.approx(1, abs=1e-3)
    for mine, match in zip(row.tiles[:4], row.tiles[8:], strict=True):
        assert torch.equal(mine.pixels, match.pixels)
        assert mine.numbers["dataset index"] == match.numbers["dataset index"]
    for was, parameter in zip(before, (*network.parameters(), *other.parameters()), strict=True):
        assert torch.equal(was, parameter)


def test_other_networks_are_compared_by_best_match(images: LabeledImages, tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = compare_networks(
        Little(), nn.Sequential(nn.Conv2d(3, 5, 5), nn.ReLU()), images, tmp_path / "out", names=("small", "smaller")
    )
    assert not made.result.same_units
    text = page_text(made.page)
    assert "small and smaller, unit by unit" in text
    assert "other network, best match" in text
    assert "other network, same channel" not in text


def test_on_the_command_line(images: LabeledImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", "squeezenet1_1", "squeezenet1_1", "--data", str(tmp_path / "images"), "--input", "3", "48"]
    given += ["48", "--layers", "features.0", "features.3.squeeze", "--out", str(tmp_path / "out")]
    assert main([*given, "--channels", "2"]) == 0
    assert "Page, to open in a browser" in capsys.readouterr().out
    assert "features.3.squeeze" in page_text(tmp_path / "out" / "index.html")
    for wrong, message in (
        (["--layers", "features.99"], "no layer of SqueezeNet matches 'features.99'"),
        (["--other-weights", "nothing.pt"], "there is no such file"),
        (["--channels", "0"], "is not a whole number of at least 1"),
        (["--images", "3"], "3 images: a comparison takes at least 4"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*given, *wrong])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
