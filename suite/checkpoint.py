"""Checkpoints: the state of a method's plain attributes, captured and put back so that a resumed run equals an
uninterrupted one bit by bit.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import MethodError
from .files import write_atomic

_PLAIN = (bool, int, float, str, bytes, type(None))


def capture(owner: Any, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The state of all attributes of `owner` but `skip`: modules, optimisers, tensors, generators, plain values."""
    kept = {name: value for name, value in vars(owner).items() if name not in skip}
    return {name: _capture(value, f"{type(owner).__name__}.{name}") for name, value in kept.items()}


def restore(owner: Any, state: Mapping[str, Any]) -> None:
    """Put `state` back into `owner`, which was set up anew; what can load a state keeps its identity."""
    for name, value in state.items():
        setattr(owner, name, _restore(getattr(owner, name, None), value, f"{type(owner).__name__}.{name}"))


def reset(owner: Any, state: Mapping[str, Any]) -> None:
    """Put `owner` back to `state`, as often as wished; its random generators go on, so that every new start differs."""
    for name in set(vars(owner)) - set(state):
        delattr(owner, name)
    generators = {name for name, value in vars(owner).items() if isinstance(value, torch.Generator)}
    restore(owner, copy.deepcopy({name: value for name, value in state.items() if name not in generators}))


def _capture(value: Any, where: str) -> Any:
    if isinstance(value, torch.Generator):
        return {"__generator__": value.get_state(), "device": str(value.device)}
    if isinstance(value, nn.Module):
        flags = {name: module.training for name, module in value.named_modules()}
        return {"__state__": value.state_dict(), "training": flags}
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return {"__state__": value.state_dict()}
    if isinstance(value, (Tensor, *_PLAIN)):
        return value
    if isinstance(value, (list, tuple)):
        return {"__items__": [_capture(item, where) for item in value], "tuple": isinstance(value, tuple)}
    if isinstance(value, dict):
        return {"__dict__": [(key, _capture(item, where)) for key, item in value.items()]}
    if callable(value) or isinstance(value, torch.device):
        return {"__keep__": True}
    raise MethodError(
        f"{where} holds a {type(value).__name__}, which a checkpoint cannot keep. "
        "Use tensors, modules, optimisers, generators and plain values."
    )


def _restore(current: Any, saved: Any, where: str) -> Any:
    if not isinstance(saved, dict):
        if isinstance(saved, Tensor) and isinstance(current, Tensor) and current.shape == saved.shape:
            with torch.no_grad():
                current.copy_(saved)
            return current
        return saved
    if "__keep__" in saved:
        return current
    if "__generator__" in saved:
        generator = current if isinstance(current, torch.Generator) else torch.Generator(saved["device"])
        generator.set_state(saved["__generator__"].cpu())
        return generator
    if "__state__" in saved:
        if not hasattr(current, "load_state_dict"):
            raise MethodError(
                f"{where} is a module or an optimiser made after `setup`, so that a resumed run cannot restore it. "
                "Make it in `setup`."
            )
        current.load_state_dict(saved["__state__"])
        for name, module in current.named_modules() if "training" in saved else ():
            module.training = saved["training"][name]
        return current
    if "__items__" in saved:
        old = list(current) if isinstance(current, (list, tuple)) else []
        items = [_restore(old[i] if i < len(old) else None, item, where) for i, item in enumerate(saved["__items__"])]
        return tuple(items) if saved["tuple"] else items
    old_map = current if isinstance(current, dict) else {}
    return {key: _restore(old_map.get(key), item, where) for key, item in saved["__dict__"]}


def save(path: Path, state: Mapping[str, Any], device: torch.device) -> None:
    """Write `state` and the global random states durably."""
    buffer = io.BytesIO()
    random_states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        random_states["cuda"] = torch.cuda.get_rng_state(device)
    torch.save({"state": dict(state), "random": random_states}, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Read a checkpoint and put the global random states back; None when there is none or it cannot be read."""
    if not path.exists():
        return None
    try:
        data = torch.load(path, map_location=device, weights_only=True)
    except Exception:
        # A checkpoint only saves time: an unreadable one means starting from the beginning.
        return None
    torch.set_rng_state(data["random"]["torch"].cpu())
    if "cuda" in data["random"]:
        torch.cuda.set_rng_state(data["random"]["cuda"].cpu(), device)
    state: dict[str, Any] = data["state"]
    return state
