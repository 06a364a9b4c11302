"""What was seen, kept as data: results to and from files, and reports to take away."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
