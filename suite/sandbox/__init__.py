"""Code that a model wrote runs where it can do no harm: `caller` hands it to the process whose program is `server`."""

from .caller import Limits, Ran, Sandbox, SandboxError

__all__ = ["Limits", "Ran", "Sandbox", "SandboxError"]
