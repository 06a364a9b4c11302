"""The code that makes a network and runs in it, as one checksum."""

from __future__ import annotations

import hashlib
import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

__all__ = ["code_hash"]

_INSTALLED = {"site-packages", "dist-packages"}
_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING)


def code_hash(network: nn.Module, factory: str) -> str:
    """Return a checksum of the user's own code behind a network; comments and line breaks do not count.

    Own is the module of the factory, those of the classes that the network is made of, and whatever these have by name:
    modules, classes and functions, as far as they lie in the factory's package or are not installed. Of installed
    packages the version counts.

    Args:
        network: As the factory made it.
        factory: The name of the module that has it.
    """
    package = factory.partition(".")[0]
    found, versions = dict[str, ModuleType](), set[str]()
    waiting = [factory, *(kind.__module__ for layer in network.modules() for kind in type(layer).__mro__)]
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in found:
            continue
        top = name.partition(".")[0]
        if top == package or _is_own(module):
            found[name] = module
            waiting += _named_in(module)
        elif top not in sys.stdlib_module_names:
            versions.add(f"{top} {getattr(sys.modules.get(top), '__version__', '')}")
    digest = hashlib.sha256("\n".join(sorted(versions)).encode())
    for name, module in sorted(found.items()):
        digest.update(f"\n{name}\n".encode() + _code(module))
    return digest.hexdigest()[:16]


def _named_in(module: ModuleType) -> Iterator[str]:
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
            continue
        # Of an object its type: what it says itself may warn, or import something.
        named: Any = value if isinstance(value, type | FunctionType) else type(value)
        if isinstance(named.__module__, str):
            yield named.__module__


def _is_own(module: ModuleType) -> bool:
    """Whether a module is a file that is not installed."""
    file = getattr(module, "__file__", None)
    if not file or module.__name__.partition(".")[0] in (*sys.stdlib_module_names, "lightning_cnnviz"):
        return False
    place = Path(file).resolve()
    # Also those of another environment, or of the system, that this one can import from.
    return not _INSTALLED & {*place.parts} and not place.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


def _code(module: ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    if not file:
        return b""
    try:
        content = Path(file).read_bytes()
    except OSError:
        return b""
    try:
        words = list(tokenize.tokenize(io.BytesIO(content).readline))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return content  # of a compiled extension
    return "\0".join(word.string for word in words if word.type not in _SILENT).encode("utf-8", "surrogatepass")
