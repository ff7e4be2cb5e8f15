"""The names of samplers, and those that cannot be guided."""

import re
from typing import Any

from ..comfy.sampling import name_in_menu

# Name of the function -> the sampler's name, and why it cannot be guided. These reasons say more than a failed dry run.
REFUSED = {
    "dpm_adaptive_function": (
        "dpm_adaptive",
        "it chooses its steps as it goes, so none has a fixed place in the run",
    ),
    "sample_ar_video": ("ar_video", "it makes a video block by block"),
}
OTHERS = "Choose another, for instance euler, dpmpp_2m or uni_pc."


def sampler_name(sampler: Any) -> str:
    """A sampler (the host's KSAMPLER), as users know it: by its name in the menu, else by its function and its pack."""
    if name := name_in_menu(sampler):
        return repr(name)
    function = sampler.sampler_function
    function = getattr(function, "func", function)  # of a partial
    own = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
    return f"{own!r} (not in KSampler's menu; from {_pack(str(function.__module__))})"


def _pack(module: str) -> str:
    """The folder of the pack that a module belongs to; the host names modules of packs by their paths."""
    inside = re.split(r"custom_nodes[/\\.]", module)[-1]
    return re.split(r"[/\\.]", inside)[0]


def sampler_refusal(sampler: Any) -> str | None:
    """Why this sampler (the host's KSAMPLER) cannot be guided, or None."""
    name = getattr(sampler.sampler_function, "__name__", "")
    if name not in REFUSED:
        return None
    menu, why = REFUSED[name]
    return refusal(repr(menu), why)


def refusal(name: str, why: str) -> str:
    """The message for a sampler that cannot be guided; name: as of sampler_name."""
    return f"JEPA guidance does not support the sampler {name}: {why}. {OTHERS}"
