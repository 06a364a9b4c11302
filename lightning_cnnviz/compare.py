"""Two networks on the same images, unit by unit: `cnnviz compare A B` makes a page of what has become of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lightning_cnnviz.command_options import add_image_options, image_options, positive
from lightning_cnnviz.core.comparison.similarity import FEWEST_IMAGES
from lightning_cnnviz.core.comparison.units import UnitComparison, compare_units
from lightning_cnnviz.core.network.layers import LayerSpec
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.explore import find_exploration_images, load_network
from lightning_cnnviz.finetune.images import LabeledImages
from lightning_cnnviz.record.identity import network_identity
from lightning_cnnviz.render.changed_units import changed_galleries, changed_units, other_units
from lightning_cnnviz.render.comparison import comparison_report
from lightning_cnnviz.render.display import Display, class_names, file_names
from lightning_cnnviz.render.normalization import chosen_normalization
from lightning_cnnviz.report import Step
from lightning_cnnviz.sinks.page import PageSink

__all__ = ["ComparedNetworks", "compare_main", "compare_networks"]

_BATCH = 32
_CHANNELS = 8  # of each layer, shown with their patches


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparedNetworks:
    """What a comparison made.

    Attributes:
        page: The local page.
        result: What was found.
    """

    page: Path
    result: UnitComparison


def compare_networks(
    network: nn.Module,
    other: nn.Module,
    images: LabeledImages,
    out: Path,
    *,
    layers: LayerSpec = "conv",
    other_layers: LayerSpec | None = None,
    channels: int = _CHANNELS,
    k: int = 9,
    names: tuple[str, str] | None = None,
) -> ComparedNetworks:
    """Compare two networks unit by unit, and write a page: which layers are alike, and which units changed most.

    Of each layer, the channels that changed most are shown with their strongest patches, above those of the channel of
    the same number in the other network (where numbers mean the same) and of the one that it is matched with there.
    Both networks are given the same images, and are left as they were. See `compare_units`.

    Args:
        network: Takes images `(N, C, H, W)`.
        other: Takes them, too: another network, or the same one with other weights.
        images: From `find_exploration_images`.
        out: Folder of the page; a later comparison of other networks or images stands beside this one.
        layers: See `select_layers`.
        other_layers: The same of the other network; by default what `layers` says.
        channels: Of each layer, how many are shown with their patches.
        k: How many patches a channel.
        names: What the two are called on the page; by default their classes.

    Raises:
        LayerNotFoundError: `layers` matches nothing.
        ValueError: A network does not take the images, `channels` or `k` is less than 1, or there are too few images.
    """
    if channels < 1 or k < 1:
        raise ValueError(f"channels={channels}, k={k}: give at least 1 of each")
    if len(images) < FEWEST_IMAGES:
        raise ValueError(f"{len(images)} images: a comparison takes at least {FEWEST_IMAGES}")
    page = PageSink(out)
    page.open([], out)
    loader = DataLoader(images, batch_size=_BATCH)
    result = compare_units(
        network, other, loader, layers, other_layers=other_layers, most_images=len(images), progress=_bar("comparing")
    )
    shown = {layer.layer: found for layer in result.layers if (found := changed_units(layer, channels))}
    beside: dict[str, list[int]] = {}
    for layer in (layer for layer in result.layers if layer.layer in shown):
        there = beside.setdefault(layer.other, [])
        there += [one for one in other_units(layer, shown[layer.layer]) if one not in there]
    own, others = (
        mine_top_patches(
            model, loader, list(kept), k, features=kept, sources=True, progress=_bar("looking for patches")
        )
        for model, kept in ((network, shown), (other, beside))
    )
    report = comparison_report(result)
    galleries = changed_galleries(result, own, others, _display(images, own, others))
    called = names or (type(network).__name__, type(other).__name__)
    title = f"{called[0]} and {called[1]}, unit by unit"
    run = "-".join((images.checksum(), network_identity(network).checksum[:8], network_identity(other).checksum[:8]))
    step = Step(
        epoch=0, global_step=0, stage="validate", run=run, data=f"{len(images):,} images", network=" and ".join(called)
    )
    page.write(replace(report, title=title, items=(*report.items, *galleries)), step)
    return ComparedNetworks(page=page.path.resolve(), result=result)


def _display(images: LabeledImages, *mined: TopPatches) -> Display:
    patches = [patch for each in mined for patch in each.all_patches()]
    indices = list(dict.fromkeys(index for each in mined for index in each.shown_images()))
    return Display(
        normalization=chosen_normalization(None, images, patches),
        class_names=class_names(images),
        files=file_names(images, indices),
    )


def _bar(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Show progress of what takes more than a second or two."""
    return lambda batches: tqdm(batches, what, leave=False, delay=1)


def compare_main(arguments: Sequence[str] | None = None) -> int:
    """Compare two networks, and write a page."""
    parser = argparse.ArgumentParser(
        prog="cnnviz compare",
        description="Compare two networks on the same images, layer by layer and unit by unit: a network before and "
        "after fine-tuning, two checkpoints of one training, or two architectures. Writes a local page.",
    )
    network = "a torchvision classifier, timm/NAME, package.module:factory, or a checkpoint of fit"
    parser.add_argument("network", metavar="A", help=network)
    parser.add_argument("other", metavar="B", help=f"the same for the other: {network}")
    add_image_options(parser, input_of="the networks' input")
    parser.add_argument("--weights", metavar="FILE", help="of A: a file, or DEFAULT; by default what it is made with")
    parser.add_argument("--other-weights", metavar="FILE", help="of B")
    parser.add_argument("--backbone", metavar="NAME", help="of a checkpoint A of a network of your own: its factory")
    parser.add_argument("--other-backbone", metavar="NAME", help="of a checkpoint B")
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="of A: names or globs; default: all convolutions")
    parser.add_argument("--other-layers", nargs="+", metavar="LAYER", help="of B; default: as of A")
    parser.add_argument(
        "--channels", type=positive, default=_CHANNELS, metavar="N", help="of each layer, shown; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=Path("cnnviz_compare"), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        images = find_exploration_images(**image_options(options))
        made = compare_networks(
            load_network(options.network, options.weights, options.input, backbone=options.backbone),
            load_network(options.other, options.other_weights, options.input, backbone=options.other_backbone),
            images,
            options.out,
            layers=options.layers or "conv",
            other_layers=options.other_layers,
            channels=options.channels,
            names=(_called(options.network, options.weights), _called(options.other, options.other_weights)),
        )
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Page, to open in a browser: {made.page}")
    return 0


def _called(name: str, weights: str | None) -> str:
    return name if weights is None else f"{name} ({Path(weights).name})"
