from .data import ImageFolderDataModule as ImageFolderDataModule
from .module import FineTuner as FineTuner
