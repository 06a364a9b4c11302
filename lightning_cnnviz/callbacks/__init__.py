"""Monitors: Lightning callbacks that say when and on which layers to look."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
