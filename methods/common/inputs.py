"""What a method asks of the inputs themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...suite.errors import UsageError

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


def check_real_inputs(method: str, does: str, view: View) -> None:
    """Raises `UsageError` when inputs of the task of `view` are integers, as token ids are; `method` `does` inputs."""
    dtype = view.labeled[:1].dtype
    if not dtype.is_floating_point:
        raise UsageError(
            f"{method} {does} inputs, which must be real numbers; those of {type(view.task).__name__} are "
            f"{str(dtype).removeprefix('torch.')} (token ids?). Run it on a task whose inputs are images or vectors."
        )
