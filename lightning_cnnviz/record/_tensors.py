"""Tensors as files hold them, and the names that their contents give them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["restored_tensor", "stored_tensor", "tensor_name", "write_tensors"]

# Those of safetensors that every version of it has; others are kept as numbers of these, and their dtype is noted.
_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stored_tensor(tensor: Tensor) -> tuple[Tensor, str]:
    """Return a tensor as it is kept, on the CPU and contiguous, and the dtype that is to be noted (or "").

    Raises:
        RuntimeError, NotImplementedError, TypeError: It has no values of its own: it is sparse or quantized, or on
            the device "meta".
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise TypeError(f"{tensor.layout}, {tensor.dtype} on {tensor.device}")
    values = tensor.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()
    dtype = values.dtype
    if dtype in _NAMES:
        return values, ""
    values = torch.view_as_real(values) if dtype.is_complex else values.view(_BYTES[values.itemsize])
    return values, str(dtype).removeprefix("torch.")


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Write stored tensors by their names, as safetensors does; return how many bytes.

    One after the other: safetensors' own writer holds them all a second time.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].itemsize, pair[0]))  # each at a multiple of its size
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(_bytes_of(tensor))
    return 8 + len(text) + end


def restored_tensor(tensor: Tensor, noted: object) -> Tensor:
    """Return a tensor as it was before `stored_tensor`.

    Raises:
        RuntimeError, TypeError, AttributeError: There is no such dtype, or the tensor does not hold its values.
    """
    if noted is None:
        return tensor
    dtype = getattr(torch, noted) if isinstance(noted, str) else None
    if not isinstance(dtype, torch.dtype) or dtype in _NAMES:
        raise TypeError(f"no dtype: {noted}")
    if not dtype.is_complex:
        if tensor.itemsize != dtype.itemsize or tensor.dtype not in _BYTES.values():
            raise TypeError(f"{tensor.dtype} for {noted}")
        return tensor.view(dtype)
    if tensor.dtype != dtype.to_real():
        raise TypeError(f"{tensor.dtype} for {noted}")
    return torch.view_as_complex(tensor)


def tensor_name(tensor: Tensor) -> str:
    """Return the name of a contiguous CPU tensor: 20 hexadecimal digits, a hash of dtype, shape and bytes.

    Example:
        >>> tensor_name(torch.zeros(2))
        'ec2796a321a8de1ead2c'
    """
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=10)
    digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a CPU tensor, of a contiguous one without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
