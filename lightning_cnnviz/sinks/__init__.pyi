from .base import Sink as Sink
from .memory import MemorySink as MemorySink
from .page import PageSink as PageSink
from .wandb import WandbSink as WandbSink
