"""Where reports go."""

from lightning_cnnviz.sinks.base import MemorySink, Sink
from lightning_cnnviz.sinks.page import PageSink
from lightning_cnnviz.sinks.wandb import WandbSink

__all__ = ["MemorySink", "PageSink", "Sink", "WandbSink"]
