"""Weights by name or from a file: read without running any code of theirs, and fitted to the network by key."""

from __future__ import annotations

import importlib
import logging
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.finetune.heads import ClassifyingLayers
from lightning_cnnviz.finetune.networks import weights_enum

__all__ = ["WeightsError", "load_weights", "read_weights", "weights_file"]

log = logging.getLogger("lightning_cnnviz")

_TIMM = "timm/"
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SHOWN = 3


class WeightsError(ValueError):
    """Weights cannot be read, or do not fit the network."""


def read_weights(backbone: str | nn.Module, weights: str) -> dict[str, Tensor]:
    """Return a state dict on the CPU.

    Args:
        backbone: The network's name, or the network.
        weights: `"DEFAULT"`, the name of an entry of torchvision's enum or of timm's tags, or a local file: what
            `torch.save` has written of a state dict or a checkpoint, or `.safetensors`. All that it holds is returned,
            also where a part of it is named (`"FILE:student"`), which `load_weights` takes.

    Raises:
        WeightsError: There is no such file or name, the file holds no state dict, or the download fails.
    """
    path, _ = weights_file(weights)
    if path.is_file():
        return _from_file(path)
    if path.suffix in _SUFFIXES or path.parent != Path("."):
        raise WeightsError(f"weights={weights!r}: there is no such file")
    if not isinstance(backbone, str) or ":" in backbone:
        raise WeightsError(
            f"weights={weights!r}: there is no such file, and a network of your own has no weights by name; "
            "give a file, or leave weights out for the values that it has"
        )
    if backbone.startswith(_TIMM):
        return _from_timm(backbone, weights)
    try:
        entry = weights_enum(backbone, weights)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    try:
        downloaded: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except Exception as error:
        raise _download_failed(backbone, weights, f"{entry.url} ({error})") from error
    return downloaded


def weights_file(weights: str) -> tuple[Path, str]:
    """Return the file that weights lie in, where they do, and which part of it is meant: `"FILE:student"`.

    `"FILE:."` means what lies there without a prefix.

    Example:
        >>> weights_file("DEFAULT")[1]
        ''
    """
    path = Path(weights).expanduser()
    before, colon, part = weights.rpartition(":")
    if colon and not path.is_file() and Path(before).expanduser().is_file():
        return Path(before).expanduser(), part
    return path, ""


def load_weights(
    model: nn.Module,
    given: Mapping[str, Tensor],
    classifiers: ClassifyingLayers,
    source: str = "the state dict",
    *,
    part: str = "",
) -> None:
    """Put weights into a network, before its head is replaced.

    Prefixes such as `module.`, `model.`, `_orig_mod.` or those of a LightningModule are taken off; where several would
    do (a student's and a teacher's), none is chosen. A classifier of another number of classes, or of another form, is
    left out, as it is going to be replaced.

    Args:
        model: The network; changed.
        given: Tensors by key.
        classifiers: From `find_classifiers`.
        source: Where they are from, for messages.
        part: Which of several networks is meant, see `weights_file`: the one below this prefix, `"."` for the one
            without any.

    Raises:
        WeightsError: Any other key is missing, left over, or of another shape; the network is there several times; or
            there is no such part.
    """
    expected = model.state_dict()
    heads = list(classifiers.replaced)
    stripped = _stripped(given, expected, heads, source, part)
    around = [extra.name.rpartition(".")[0] for extra in classifiers.auxiliary]
    # What encloses an auxiliary classifier alone may be missing.
    optional = [outer for outer in around if not any(name.startswith(f"{outer}.") for name in classifiers.heads)]
    for name in heads:
        ours, theirs = _below(expected, name), _below(stripped, name)
        if {key: tuple(expected[key].shape) for key in ours} == {key: tuple(stripped[key].shape) for key in theirs}:
            continue
        for key in theirs:
            del stripped[key]
        for key in ours:
            del expected[key]
        log.info("%s: the weights of the classifier '%s' do not fit and are left out", source, name)
    for name in filter(None, optional):
        if not _below(stripped, name):  # an auxiliary branch, which many files lack
            expected = {key: value for key, value in expected.items() if key not in _below(expected, name)}
    missing = [key for key in expected if key not in stripped and not key.endswith("num_batches_tracked")]
    extra = [key for key in stripped if key not in expected]
    shaped = [
        key
        for key, value in stripped.items()
        if key in expected and not is_lazy(expected[key]) and value.shape != expected[key].shape
    ]
    if missing or extra or shaped:
        raise WeightsError(_misfit(model, source, expected, stripped, missing, extra, shaped))
    model.load_state_dict(stripped, strict=False)


def _from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            safetensors = importlib.import_module("safetensors.torch")
        except ImportError as error:
            raise WeightsError(
                f"weights='{path}' needs safetensors, which is not installed: pip install safetensors"
            ) from error
        try:
            read: dict[str, Tensor] = _tensors_of(path, safetensors)
        except Exception as error:
            raise WeightsError(f"weights='{path}' cannot be read as safetensors: {error}") from error
        return read
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights='{path}' holds more than tensors (a pickled module, perhaps), or is damaged; no code is run that "
            "a file brings. Where you trust it, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW_FILE)"
        ) from error
    except Exception as error:
        raise WeightsError(f"weights='{path}' cannot be read as a file of torch.save: {error}") from error
    return _unwrapped(content, path)


def _tensors_of(path: Path, safetensors: Any) -> Any:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors takes no path that is not UTF-8
        return safetensors.load(path.read_bytes())
    return safetensors.load_file(str(path))


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """All tensors in a file, by their names: all of them, as any may belong to a second network."""
    inner = content
    while isinstance(inner, Mapping):
        # What lies beside a network (scores, the state of an optimizer) does not lengthen its names.
        parts = {key: value for key, value in inner.items() if _could_be_weights(value)}
        if len(parts) != 1 or not isinstance(next(iter(parts.values())), Mapping):
            break
        inner = next(iter(parts.values()))
    tensors = dict(_named_tensors(inner)) if isinstance(inner, Mapping) else {}
    if tensors:
        return tensors
    what = (
        f"the keys {', '.join(map(repr, list(content)[:6]))}"
        if isinstance(content, Mapping)
        else type(content).__name__
    )
    raise WeightsError(
        f"weights='{path}' holds no state dict but {what}; save one with torch.save(model.state_dict(), FILE)"
    )


def _could_be_weights(value: Any) -> bool:
    return any(tensor.ndim for _, tensor in _named_tensors({"": value}))


def _named_tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in mappings and sequences, however deep, by the names on the way to them, joined by dots."""
    named: Any = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in named:
        if isinstance(content, Mapping) and not isinstance(key, str):
            continue  # an optimizer's state, by number
        if isinstance(value, Tensor):
            yield str(key), value
        elif isinstance(value, (Mapping, list, tuple)):
            yield from ((f"{key}.{name}", tensor) for name, tensor in _named_tensors(value))


def _from_timm(backbone: str, weights: str) -> dict[str, Tensor]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(f"'{backbone}' needs timm, which is not installed: pip install timm") from error
    name = backbone.removeprefix(_TIMM)
    base = name.split(".")[0]
    tags = [model_name.partition(".")[2] for model_name in timm.list_pretrained(f"{base}.*")]
    if weights != "DEFAULT":
        if weights not in tags:
            there = ", ".join(f'"{tag}"' for tag in ["DEFAULT", *tags])
            raise WeightsError(
                f"weights={weights!r}: there is no such file, and the weights of {backbone} are called {there}."
                f"{suggestion(weights, tags, ' ')} A local file: weights=FILE; None trains from scratch"
            )
        name = f"{base}.{weights}"
    try:
        made: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise _download_failed(backbone, weights, str(error)) from error
    return made


def _download_failed(backbone: str, weights: str, why: str) -> WeightsError:
    return WeightsError(
        f"weights={weights!r} of {backbone} cannot be downloaded: {why}. "
        "With a file of them on this machine: weights=FILE; None trains from scratch"
    )


def _stripped(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], heads: Sequence[str], source: str, part: str
) -> dict[str, Tensor]:
    """Tensors by their key in the network: the prefix under which most of its keys are given is taken off."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in given.items()}
    # In the network's own keys the same, for one that is compiled in part.
    own = {key.replace("_orig_mod.", ""): key for key in expected}
    within = _prefix_of(part, plain, source)
    prefixes = {within}
    for key in plain:
        parts = key.split(".")
        for length in range(1, len(parts)):
            if ".".join(parts[length:]) in own:
                prefixes.add(".".join(parts[:length]) + ".")
    prefixes = {prefix for prefix in prefixes if prefix.startswith(within)}

    def matches(prefix: str) -> tuple[int, int]:
        return sum(key.startswith(prefix) and key[len(prefix) :] in own for key in plain), -len(prefix)

    best = max(sorted(prefixes), key=matches)
    body = _body(own, heads)
    whole = sorted(prefix for prefix in prefixes if matches(prefix)[0] and _has_all(plain, prefix, best, body))
    if part and within in whole:  # said in so many words
        best = within
    else:
        _refuse_tie(whole, best, plain, body, source)
    # Beside the network, a checkpoint holds what belongs to a loss, say, or another network below this one's prefix.
    others = tuple(prefix for prefix in whole if prefix.startswith(best) and prefix != best)
    inside = {key[len(best) :]: value for key, value in plain.items() if key.startswith(best)}
    inside = {key: value for key, value in inside.items() if key in own or not f"{best}{key}".startswith(others)}
    return {own.get(key, key): value for key, value in inside.items()}


def _prefix_of(part: str, given: Mapping[str, Tensor], source: str) -> str:
    """The prefix that the name of a part means."""
    named = part.strip(".")
    if not named:
        return ""
    for prefix in (f"{named}.", *(f"{wrapper}.{named}." for wrapper in _WRAPPERS)):
        if any(key.startswith(prefix) for key in given):
            return prefix
    beginnings = sorted({key.partition(".")[0] for key in given})
    raise WeightsError(f"{source}: no tensor's name begins with '{named}.'; they begin with {beginnings}")


def _body(own: Collection[str], heads: Sequence[str]) -> list[str]:
    """The keys of a network but its heads', which may be others, and its counters, which files may lack."""
    body = [key for key in own if not any(key.startswith(f"{head}.") for head in heads)]
    return [key for key in body if not key.endswith("num_batches_tracked")] or list(own)


def _has_all(given: Mapping[str, Tensor], prefix: str, best: str, body: Sequence[str]) -> bool:
    """Whether all of the network that lies under the best prefix lies under another, too."""
    there = [key for key in body if best + key in given]
    return any(prefix + key in given for key in body) and all(prefix + key in given for key in there)


def _refuse_tie(whole: Sequence[str], best: str, given: Mapping[str, Tensor], body: Sequence[str], source: str) -> None:
    """Refuse what holds the network, or all of it but its heads, under several names, unless they are the same."""
    there = [key for key in body if best + key in given]
    tied = [
        prefix
        for prefix in whole
        if prefix == best or any(not torch.equal(given[prefix + key], given[best + key]) for key in there)
    ]
    if len(tied) > 1:
        shown = ", ".join(f"'{prefix.rstrip('.')}'" if prefix else "no prefix" for prefix in tied)
        plain = ', or weights="FILE:." for the one without a prefix' if "" in tied else ""
        raise WeightsError(
            f"{source} holds the network {len(tied)} times, with other values: under {shown}. Say which, behind the "
            f'file\'s name: weights="FILE:{tied[-1].rstrip(".")}"{plain}'
        )


def _below(keys: Mapping[str, Any], name: str) -> list[str]:
    return [key for key in keys if key.startswith(f"{name}.")]


def _misfit(
    model: nn.Module,
    source: str,
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: list[str],
    extra: list[str],
    shaped: list[str],
) -> str:
    said = []
    if missing:
        said.append(f"{len(missing)} of {len(expected)} tensors are missing ({_few(missing)})")
    if extra:
        hints = [f"'{key}'{suggestion(key, missing, ': ')}" for key in extra[:_SHOWN]]
        said.append(f"{len(extra)} of its {len(given)} are not the network's ({', '.join(hints)})")
    if shaped:
        pairs = [f"'{key}' {tuple(given[key].shape)} for {tuple(expected[key].shape)}" for key in shaped[:_SHOWN]]
        said.append(f"{len(shaped)} are of another shape ({', '.join(pairs)})")
    return f"{source} does not fit {type(model).__name__}: {'; '.join(said)}. Is it the same network?"


def _few(keys: list[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
