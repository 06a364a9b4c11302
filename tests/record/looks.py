"""Looks to put into records."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from lightning_cnnviz.core.network.layers import select_layers
from lightning_cnnviz.core.top_patches.mining import PatchMiner
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.record.data import to_tree
from lightning_cnnviz.record.identity import LookIdentity
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.views import Seen

MEAN_STD = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "given")
NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 41, padding=20))


def photographs(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures in 8 bits, with normalization, as a network is given them."""
    noise = torch.rand(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).round() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN_STD.mean, MEAN_STD.std))
    return (pixels - mean) / std


def mined(images: torch.Tensor, net: nn.Module = NET) -> TopPatches:
    miner = PatchMiner(net, select_layers(net, "conv"), k=3, sources=True)
    with torch.no_grad(), miner.batch(images, torch.arange(len(images)), torch.arange(len(images)) % 2):
        net(images)
    return miner.compute()


def patches_seen(side: int = 64, seed: int = 0) -> Seen:
    display = Display(normalization=MEAN_STD, class_names=("ant", "bee"), files={0: "a.png"})
    return Seen(result=mined(photographs(8, side, seed)), display=display, epoch=seed)


def identity(view: str = "top_patches", **fields: Any) -> LookIdentity:
    return LookIdentity(view=view, run="r", **fields)


def tree_of(value: Any) -> str:
    """Equal for values that are equal to the bit."""
    return json.dumps(to_tree(value)[0], sort_keys=True)
