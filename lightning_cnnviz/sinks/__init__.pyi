from .base import MemorySink as MemorySink
from .base import Sink as Sink
from .page import PageSink as PageSink
from .wandb import WandbSink as WandbSink
