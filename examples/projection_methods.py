"""The same units, projected to pixels by each of the three methods: train the demo's network, draw them side by side.

python examples/projection_methods.py projection_methods.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_cnnviz import Unit, mine_top_patches, project
from lightning_cnnviz.demo import DemoNet, Digits
from lightning_cnnviz.render.image import draw_sheet, to_image
from lightning_cnnviz.render.normalization import find_normalization
from lightning_cnnviz.render.patches import to_gray_centered
from lightning_cnnviz.report import Gallery, Row, Tile

LAYER = "conv4"
FEATURES = range(8)
METHODS = ("deconvnet", "guided", "gradient")


def main(out: Path) -> None:
    pl.seed_everything(1, verbose=False)
    model, data = DemoNet(), Digits("val")
    trainer = pl.Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, DataLoader(Digits("train"), batch_size=64, shuffle=True), DataLoader(data, batch_size=64))
    found = mine_top_patches(model, DataLoader(data, batch_size=64), layers="conv", k=1, features=len(FEATURES))[LAYER]
    units = [Unit(int(found.images[f, 0]), LAYER, f, int(found.rows[f, 0]), int(found.columns[f, 0])) for f in FEATURES]
    images = {unit.image: data[unit.image][0] for unit in units}
    # layers="conv": a unit of a convolution is what the nonlinearity reads, behind the BatchNorm.
    projections = [project(model, images, units, method=method, layers="conv") for method in METHODS]
    normalization = find_normalization(data)
    assert normalization is not None
    rows = []
    for number, unit in enumerate(units):
        tiles = [Tile(normalization.to_pixels(images[unit.image]), "image")]
        tiles += [
            Tile(to_gray_centered(projection.on_image(number)), method)
            for method, projection in zip(METHODS, projections, strict=True)
        ]
        rows.append(
            Row(f"feature {unit.channel}", tuple(tiles), {"activation": projections[0].units[number][-1] or 0.0})
        )
    caption = "the strongest unit of eight feature maps, projected to pixels by each method; gray is no contribution"
    sheet = draw_sheet(
        Gallery(LAYER, tuple(rows), caption=caption, columns=4, tile_side=96), title=f"{LAYER}: three methods"
    )
    to_image(torch.as_tensor(sheet)).save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
