"""Fine-tuning: a network with a new head, trained in part or in whole, and its data."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
