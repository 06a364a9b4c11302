"""What SqueezeNet would like to see: inputs that maximize a class and some feature maps of its last module.

python examples/maximization.py squeezenet1_0.pth maximization.png

The first file holds weights for torchvision's `squeezenet1_0`, trained on ImageNet, as `torch.save(model.state_dict())`
writes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import squeezenet1_0
from tqdm import tqdm

from lightning_cnnviz.core.maximization.maximize import maximize, unit_input_size
from lightning_cnnviz.core.maximization.objectives import ClassScore, Objective, UnitActivation
from lightning_cnnviz.core.maximization.parametrization import Box, Parametrization
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.core.maximization.regularization import TotalVariation
from lightning_cnnviz.render.image import draw_sheet, to_image
from lightning_cnnviz.render.maximization import maximization_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.report import Gallery

LAYER = "features.12"
CHANNELS = (0, 50, 200, 260, 350, 400, 450, 500)
SHOWN_AS = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE = 224


def main(weights: Path, out: Path) -> None:
    model = squeezenet1_0()
    model.load_state_dict(torch.load(weights, weights_only=True))
    size = (3, SIDE, SIDE)
    goldfish = climbed(model, "classes", ["goldfish"], [ClassScore(1, "goldfish")], size)
    units = [UnitActivation(LAYER, channel) for channel in CHANNELS]
    captions = [f"channel {channel}" for channel in CHANNELS]
    layer = climbed(model, LAYER, captions, units, unit_input_size(model, LAYER, size, CHANNELS))
    report = maximization_report([goldfish, layer], SHOWN_AS)
    galleries = [item for item in report.items if isinstance(item, Gallery)]
    sheets = [to_image(draw_sheet(gallery, title=gallery.name)) for gallery in galleries]
    picture = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)))
    picture.paste(sheets[0].getpixel((0, 0)), (0, 0, *picture.size))
    for number, sheet in enumerate(sheets):
        picture.paste(sheet, (0, sum(above.height for above in sheets[:number])))
    # Smaller, and in 128 colors: a tenth of the bytes.
    smaller = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.LANCZOS)
    smaller.quantize(128).save(out, optimize=True)


def climbed(
    model: torch.nn.Module, name: str, captions: list[str], objectives: list[Objective], size: tuple[int, int, int]
) -> MaximizedLayer:
    mean, std = (torch.tensor(values) for values in (SHOWN_AS.mean, SHOWN_AS.std))
    found = maximize(
        model,
        objectives,
        size,
        starts=3,
        parametrization=Parametrization(bounds=Box((-mean / std).tolist(), ((1 - mean) / std).tolist())),
        penalty=0.5 * TotalVariation(),
        progress=tqdm,
    )
    return MaximizedLayer(name=name, captions=tuple(captions), optima=found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
