from .data import load as load
from .data import save as save
