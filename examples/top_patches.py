"""Top-9 patches of a network of your own, on a folder of images, without a Trainer.

    python examples/top_patches.py --data FOLDER [--weights FILE.pt] [--model squeezenet1_0] [--layers features.0 ...]

FOLDER holds one folder a class, as torchvision's ImageFolder takes it. Writes `top_patches/index.html`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from lightning_cnnviz import PageSink, mine_top_patches
from lightning_cnnviz.core.top_patches.search import diagnose
from lightning_cnnviz.render import find_normalization, top_patches_report
from lightning_cnnviz.report import Step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--layers", nargs="+", default=["features.0", "features.5", "features.9", "features.12"])
    parser.add_argument("--out", type=Path, default=Path("top_patches"))
    options = parser.parse_args()

    transform = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(227),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(options.data, transform)
    model = torchvision.models.get_model(options.model)
    if options.weights is not None:
        model.load_state_dict(torch.load(options.weights, weights_only=True))

    found = mine_top_patches(model, DataLoader(dataset, batch_size=32), options.layers, progress=tqdm)
    normalization = find_normalization(dataset)
    assert normalization is not None
    report = top_patches_report(found, diagnose(found), normalization, class_names=dataset.classes)
    page = PageSink(options.out)
    page.open([], options.out)
    page.write(report, Step(epoch=0, global_step=0, stage="validate"))
    print(f"Open {page.path} in a browser.")


if __name__ == "__main__":
    main()
