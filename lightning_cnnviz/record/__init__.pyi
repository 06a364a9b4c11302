from .data import load as load
from .data import save as save
from .identity import DataIdentity as DataIdentity
from .identity import LookIdentity as LookIdentity
from .identity import NetworkIdentity as NetworkIdentity
from .store import Record as Record
from .store import RecordedLook as RecordedLook
