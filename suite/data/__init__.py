"""Data sets on this machine.

`folders` finds and checks them by what `sets` reads of `tasks/datasets.toml`; `delivery` brings what is missing, by way
of `archives`, `package_files` and `web`.
"""

from .folders import Data

__all__ = ["Data"]
