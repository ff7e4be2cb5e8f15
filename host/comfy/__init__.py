"""Everything that is taken from ComfyUI, checked at import: the one room that imports it."""
