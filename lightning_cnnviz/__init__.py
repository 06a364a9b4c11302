"""Lightning callbacks that show what a convnet learns, while it trains.

    from lightning_cnnviz import TopPatchesMonitor

    trainer = Trainer(logger=WandbLogger(project="flowers"), callbacks=[TopPatchesMonitor()])

The names in `__init__.pyi` are loaded when they are first used: `lightning_cnnviz.core` loads neither Lightning nor
wandb.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("lightning_cnnviz")
except PackageNotFoundError:  # used from a checkout that was never installed
    __version__ = "0.0.0"
