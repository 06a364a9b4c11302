"""What the ranks of a distributed run say to each other; none waits for one that has failed.

Before every exchange ranks meet: each tells where it is, and whether it has failed since they last met. A rank that
fails inside `together` takes part in one meeting more, to say so. So what ranks do together succeeds on all of them or
fails on all of them, and no collective of torch is begun that a rank does not come to.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lightning_cnnviz.core.network.arguments import is_wrong_argument

__all__ = [
    "OtherRankError",
    "agreed",
    "exchanged",
    "from_first",
    "gathered",
    "gathered_objects",
    "rank",
    "ranks",
    "summed",
    "to_first",
    "together",
]

_LINE = 1024  # bytes that each rank says at a meeting
_LARGE = 1_000_000  # bytes from which on ranks also meet when they have found memory for an exchange
_WELL, _FAILED, _UNSUITABLE, _WRONG = "well", "failed", "unsuitable", "wrong"


class _Block:
    """A block of `together` that the code that runs now is in.

    What was told of is noted here, and not on the exception: code may keep one, and raise it again.
    """

    def __init__(self, parent: _Block | None) -> None:
        self.parent = parent
        self.depth: int = 1 if parent is None else parent.depth + 1
        self._told: BaseException | None = None
        self._meetings = 0

    def note(self, error: BaseException) -> None:
        """All ranks know of an exception that a block inside this one has failed by."""
        self._told, self._meetings = error, _meetings

    def has_told(self, error: BaseException | None) -> bool:
        """Whether an exception is that one, or was raised from it; ranks that met since have gone on without it."""
        while error is not None and self._meetings == _meetings:
            if error is self._told:
                return True
            error = error.__cause__ or error.__context__
        return False


_BLOCK: ContextVar[_Block | None] = ContextVar("block", default=None)
_meetings = 0  # of this process


class OtherRankError(RuntimeError):
    """What a rank raises where another one has failed in what they do together.

    Attributes:
        unsuitable: Whether the other rank has raised a ValueError.
        wrong: Whether that was of an argument that is wrong; see `is_wrong_argument`.
    """

    def __init__(self, message: str, *, unsuitable: bool = False, wrong: bool = False) -> None:
        super().__init__(message)
        self.unsuitable, self.wrong = unsuitable, wrong


class _Leaves(BaseException):
    """Takes a rank out of the block that another one has failed in; nothing that catches errors on the way holds it."""

    def __init__(self, depth: int, error: RuntimeError) -> None:
        super().__init__()
        self.depth, self.error = depth, error


class _Said(NamedTuple):
    state: str
    depth: str
    where: str
    words: str


@contextmanager
def together(what: str) -> Iterator[None]:
    """Do something on every rank that succeeds on all of them or fails on all of them; every rank comes here.

    Inside, ranks may exchange what they like. On leaving they meet. Blocks may stand inside each other.

    Args:
        what: Is done, in a few words that are the same on every rank.

    Raises:
        OtherRankError: It has failed on another rank alone; on that rank, its own exception passes.
        RuntimeError: Ranks have come to different places.
    """
    if ranks() == 1:
        yield
        return
    block = _Block(_BLOCK.get())
    token = _BLOCK.set(block)
    try:
        yield
        _meet(f"the end of {what}")
    except _Leaves as leaves:
        if leaves.depth < block.depth:
            raise
        if block.parent is not None:
            block.parent.note(leaves.error)
        raise leaves.error from None
    except Exception as error:
        if not block.has_told(error):
            state = _WRONG if is_wrong_argument(error) else _UNSUITABLE if isinstance(error, ValueError) else _FAILED
            _meet(what, f"{type(error).__name__}: {error}", state)
        if block.parent is not None:
            block.parent.note(error)
        raise
    finally:
        _BLOCK.reset(token)


def exchanged(own: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor | None]:
    """Bring together pixels of which each rank has some; what several ranks have, the lowest of them gives.

    Args:
        own: Pixels or None, in the same order on every rank.
        shapes: The shape of each.
        like: Empty, of the pixels' dtype.
    """
    if ranks() == 1:
        return list(own)
    has = torch.stack(gathered(torch.tensor([pixels is not None for pixels in own], dtype=torch.uint8)))
    owners = has.argmax(0).tolist()
    mine = [
        pixels.flatten() for pixels, owner in zip(own, owners, strict=True) if pixels is not None and owner == rank()
    ]
    streams = gathered(torch.cat([like.flatten(), *mine]))
    taken = [0] * len(streams)
    whole: list[Tensor | None] = []
    for shape, owner in zip(shapes, owners, strict=True):
        count = math.prod(shape)
        whole.append(streams[owner][taken[owner] : taken[owner] + count].view(shape).clone())
        taken[owner] += count
    return whole


def gathered(tensor: Tensor) -> list[Tensor]:
    """Return every rank's tensor (of one dtype; shapes may differ), on the CPU."""
    if ranks() == 1:
        return [tensor]
    own = tensor.detach().flatten().contiguous().view(torch.uint8).to(_device())
    said = _meet(f"gathering tensors of {tensor.dtype}", " ".join(map(str, tensor.shape)))
    shapes = [[int(size) for size in each.words.split()] for each in said]
    counts = [tensor.element_size() * math.prod(shape) for shape in shapes]
    parts = zip(_all_bytes(own, counts), shapes, strict=True)
    return [part.cpu().view(tensor.dtype).view(shape) for part, shape in parts]


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of every rank's tensor (of one shape), on the CPU."""
    if ranks() == 1:
        return tensor
    total = tensor.to(_device(), copy=True)
    _meet(f"summing {tuple(tensor.shape)} of {tensor.dtype}")
    torch.distributed.all_reduce(total)
    return total.cpu()


def agreed(flags: Sequence[bool]) -> list[bool]:
    """Return which of some flags are true on every rank; every rank gives as many, in the same order."""
    if ranks() == 1 or not flags:
        return list(flags)
    number = sum(1 << place for place, flag in enumerate(flags) if flag)
    for said in _meet(f"agreeing on {len(flags)}", f"{number:x}"):
        number &= int(said.words, 16)
    return [bool(number >> place & 1) for place in range(len(flags))]


def gathered_objects(own: Any) -> list[Any]:
    """Return what every rank has, in the order of ranks; tensors in it are on the CPU."""
    if ranks() == 1:
        return [own]
    content = _pickled(own)
    counts = [int(said.words) for said in _meet("gathering", str(len(content)))]
    return [_unpickled(part) for part in _all_bytes(content, counts)]


def from_first(own: Any) -> Any:
    """Return what the first rank has; tensors in it are on the CPU."""
    if ranks() == 1:
        return own
    content = _pickled(own if rank() == 0 else None)
    count = int(_meet("hearing the first rank", str(len(content)))[0].words)
    buffer = content if rank() == 0 else _room([count])[0]
    if count > _LARGE:
        _meet("having room for what the first rank says")
    torch.distributed.broadcast(buffer, 0)
    return own if rank() == 0 else _unpickled(buffer)


def to_first(own: Any) -> list[Any]:
    """Return what every rank has, in the order of ranks, on the first rank; elsewhere None but for what it has itself.

    Tensors in it are on the CPU. What is large travels once, where `gathered_objects` sends it to every rank.
    """
    if ranks() == 1:
        return [own]
    content = _pickled(own) if rank() else _pickled(None)
    counts = [int(said.words) for said in _meet("telling the first rank", str(len(content)))]
    rooms = [content, *_room(counts[1:])] if rank() == 0 else []
    if max(counts) > _LARGE:
        _meet("having room for what ranks tell the first one")
    whole: list[Any] = [None] * ranks()
    whole[rank()] = own
    if rank():
        torch.distributed.send(content, 0)
    for number, room in enumerate(rooms[1:], 1):
        torch.distributed.recv(room, number)
        whole[number] = _unpickled(room)
    return whole


def ranks() -> int:
    """Return how many processes train together; 1 where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def rank() -> int:
    """Return which of the processes this is, from 0; 0 where there is no process group."""
    return torch.distributed.get_rank() if ranks() > 1 else 0


def _meet(where: str, words: str = "", state: str = _WELL) -> list[_Said]:
    """Say one line, and hear those of all ranks, in their order.

    Raises:
        OtherRankError: Another rank has failed, and this one has not. Inside `together`, it is raised by the
            outermost block that a rank has failed in: so ranks go on from the same place.
        RuntimeError: Ranks are at different places.
    """
    global _meetings
    _meetings += 1
    here = _BLOCK.get()
    own_depth = 0 if here is None else here.depth
    line = f"{state}\n{own_depth}\n{where}\n{words}".encode("utf-8", "replace")[:_LINE]
    own = torch.frombuffer(bytearray(line.ljust(_LINE)), dtype=torch.uint8).to(_device())
    lines = [torch.empty_like(own) for _ in range(ranks())]
    torch.distributed.all_gather(lines, own)
    heard = [each.cpu().numpy().tobytes().decode("utf-8", "ignore").rstrip().split("\n", 3) for each in lines]
    said = [_Said(*each, *[""] * (4 - len(each))) for each in heard]
    failed = {number: each for number, each in enumerate(said) if each.state != _WELL}
    if failed:
        depth = min(int(each.depth) for each in failed.values())
        if state == _WELL or depth < own_depth:
            number, first = next(iter(failed.items()))
            text = f"it failed on rank {number}: {first.words}"
            unsuitable = first.state in (_UNSUITABLE, _WRONG)
            error = OtherRankError(text, unsuitable=unsuitable, wrong=first.state == _WRONG)
            _leave(depth, error)
    elif len({each.where for each in said}) > 1:
        places = ", ".join(f"rank {number} at {each.where}" for number, each in enumerate(said))
        _leave(1, RuntimeError(f"ranks do not do the same: {places}"))
    return said


def _leave(depth: int, error: RuntimeError) -> NoReturn:
    if _BLOCK.get() is None:
        raise error
    raise _Leaves(depth, error)


def _all_bytes(own: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Every rank's `(count,)` uint8."""
    most = max(counts)
    padded, *rooms = _room([most] * (1 + len(counts)))
    padded[: len(own)] = own
    if most > _LARGE:
        _meet("having room for what the ranks say")
    if most:
        torch.distributed.all_gather(rooms, padded)
    return [room[:count] for room, count in zip(rooms, counts, strict=True)]


def _room(counts: Sequence[int]) -> list[Tensor]:
    return [torch.zeros(count, dtype=torch.uint8, device=_device()) for count in counts]


def _pickled(own: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(own)), dtype=torch.uint8).to(_device())


def _unpickled(content: Tensor) -> Any:
    return pickle.loads(content.cpu().numpy().tobytes())


def _device() -> torch.device:
    """Where tensors must be for the process group to exchange them."""
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
