"""Run by test_distributed.py in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from callbacks.littlenet import LittleNet, quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import DeconvnetMonitor, MemorySink, TopPatchesMonitor


class Saving(TopPatchesMonitor):
    """Writes its result to a file, on rank zero."""

    out = Path()

    def render(self, result: Any) -> Any:
        torch.save(result, self.out)
        return super().render(result)


class SavingProjections(DeconvnetMonitor):
    """Writes its result to a file beside the other one, on rank zero."""

    def render(self, result: Any) -> Any:
        patches, projection = result
        torch.save((patches, projection.pixels), Saving.out.with_suffix(".projections"))
        return super().render(result)


def whole_numbers(count: int) -> TensorDataset:
    """Images of whole numbers, with many ties: activations are exact for any batch size."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 2, (count, 1, 14, 14), generator=generator).float()
    return TensorDataset(images, torch.randint(0, 4, (count,), generator=generator))


def net() -> LittleNet:
    model = LittleNet()
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape, generator=generator).float()
    model.features[1].eps = model.features[5].eps = 0.0
    return model


def main(ranks: int, where: str, out: Path) -> None:
    torch.set_num_threads(1)
    # 23 images over 2 ranks: the sampler pads, and last batches are uneven.
    loader = DataLoader(whole_numbers(23), batch_size=5)
    data = {"data": DataLoader(whole_numbers(23), batch_size=5, shuffle=True)} if where == "data" else {}
    monitor = Saving(k=4, sinks=[MemorySink()], on_error="raise", features=None, **data)
    projections = SavingProjections("conv", k=4, sinks=[MemorySink()], on_error="raise", features=None, **data)
    Saving.out = out
    strategy = "ddp_fork" if ranks > 1 else "auto"
    trainer = quiet_trainer(callbacks=[monitor, projections], devices=ranks, strategy=strategy, max_epochs=1)
    model = LittleNet() if where == "fit" else net()
    if where == "fit":
        trainer.fit(model, DataLoader(whole_numbers(16), batch_size=4), loader)
        if trainer.is_global_zero:
            torch.save(model.state_dict(), out.with_suffix(".weights"))
    else:
        trainer.validate(model, loader, verbose=False)
