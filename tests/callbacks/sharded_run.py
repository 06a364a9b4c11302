"""Run by test_sharded.py in two processes: `python sharded_run.py RANK WAY FOLDER`; weights are cut up among them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from lightning_cnnviz import MemorySink, Monitor, monitors
from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor


class Cut(LittleNet):
    """FSDP as torch has it now, and as Lightning has it for one dimension."""

    def configure_model(self) -> None:
        fully_shard(self.features[4])
        fully_shard(self)


class FullySharded(DDPStrategy):
    """FSDP as Lightning's FSDPStrategy has it, which takes GPUs alone."""

    def _setup_model(self, model: Any) -> Any:
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def main(rank: int, way: str, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    environment = TorchElasticEnvironment()
    strategy: Any = FullySharded(cluster_environment=environment, process_group_backend="gloo")
    model: LittleNet = LittleNet()
    if way == "ModelParallelStrategy":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        strategy.cluster_environment = environment
        model = Cut()
    sink = MemorySink()
    watching: list[Monitor] = [*monitors(sinks=[sink]), OnlineProbeMonitor(sinks=[sink])]
    trainer = quiet_trainer(callbacks=watching, devices=2, strategy=strategy, max_epochs=2)
    trainer.fit(model, train_loader(), val_loader())
    reasons = [{type(each).__name__: each.failure for each in watching}]
    steps = trainer.global_step
    if way == "ModelParallelStrategy":  # DDP, from which the other one is made, wraps nothing here
        trainer.validate(Cut(), val_loader(), verbose=False)
        reasons.append({type(each).__name__: each.failure for each in watching})
    torch.save({"reasons": reasons, "shown": len(sink.reports), "steps": steps}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
