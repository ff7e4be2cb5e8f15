"""Everything that is taken from ComfyUI, checked at import: the one room that imports it."""

from . import required  # noqa: F401 (first: a host that lacks a module is refused here)
