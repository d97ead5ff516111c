"""Methods and tasks by name, without importing them.

`registration` has the decorators that mark a class, `source` reads their literal arguments from parsed files into an
`entry`, `cache` keeps what was read, and `lookup` finds by name.
"""

from .entry import Entry
from .lookup import PACKAGE, entries, get
from .registration import Kind, RegistryError, register_method, register_task

__all__ = ["PACKAGE", "Entry", "Kind", "RegistryError", "entries", "get", "register_method", "register_task"]
