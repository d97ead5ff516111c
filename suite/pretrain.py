"""Source models: small classifiers that a task's `build` trains reproducibly, and the gate on their clean error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import GateError
from .files import sha256_file


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Inside, torch is seeded and computes on one thread, so that sums have one order; both are restored after."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train_classifier(
    make_model: Callable[[], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    seed: int,
    epochs: int,
    augment: Callable[[Tensor, torch.Generator], Tensor] = lambda batch, generator: batch,
    batch_size: int = 64,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
) -> nn.Module:
    """Train `make_model()` on inputs (N, ...) and classes (N,) on the CPU; equal seeds give equal weights.

    SGD with Nesterov momentum 0.9 and one cosine decay to zero; the last, incomplete batch of an epoch is left out.
    Returns the model in eval mode.
    """
    with reproducible(seed):
        model = make_model().train()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
        batches = len(inputs) // batch_size
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=generator)
            for chosen in order[: batches * batch_size].split(batch_size):  # type: ignore[no-untyped-call]
                loss = F.cross_entropy(model(augment(inputs[chosen], generator)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return model.eval()


@torch.no_grad()
def error_rate(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 1024) -> float:
    """The share of wrong classes of `model` as it stands (its mode is not touched)."""
    batches = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)  # type: ignore[no-untyped-call]
    wrong = sum(int((model(batch).argmax(dim=1) != classes).sum()) for batch, classes in batches)
    return wrong / len(labels)


def load_weights(file: Path, sha256: str) -> dict[str, Tensor]:
    """The state dict in the safetensors file `file`; raises `GateError` when its digest is not `sha256`."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise GateError(f"The weights {file} are missing. Install selfbench again.")
    found = sha256_file(file)
    if found != sha256:
        raise GateError(f"The weights {file} have the sha256 {found}, expected {sha256}. Install selfbench again.")
    return load_file(file)


def check_gate(task: Any, facts: Mapping[str, Any]) -> None:
    """Refuse a source model whose measured clean error (fact `clean_error`) is off the range its task declares.

    Tasks that declare no `clean_error` have no gate. Raises `GateError`.
    """
    declared = getattr(task, "clean_error", None)
    if declared is None:
        return
    low, high = declared
    measured = facts.get("clean_error")
    name = type(task).__name__
    if measured is None:
        raise GateError(
            f"{name} declares a clean error, but its bundle has no fact 'clean_error': build must measure it."
        )
    if not low <= measured <= high:
        raise GateError(
            f"{name}: the source model's clean error is {measured:.2%}, declared is {low:.2%} to {high:.2%}. "
            "Weights and preprocessing do not fit each other, or the data are not those of the task."
        )
