"""The names of samplers, and those that cannot be guided."""

from collections.abc import Callable

# Name of the function -> the sampler's name, and why it cannot be guided. These reasons say more than a failed dry run.
REFUSED = {
    "dpm_adaptive_function": (
        "dpm_adaptive",
        "it chooses its steps as it goes, so none has a fixed place in the run",
    ),
    "sample_ar_video": ("ar_video", "it makes a video block by block"),
}
OTHERS = "Choose another, for instance euler, dpmpp_2m or uni_pc."


def sampler_name(function: Callable) -> str:
    """The name of a sampler function, as users know it."""
    return getattr(function, "__name__", type(function).__name__).removeprefix("sample_")


def sampler_refusal(function: Callable) -> str | None:
    """Why this sampler cannot be guided, or None."""
    if getattr(function, "__name__", "") not in REFUSED:
        return None
    return refusal(*REFUSED[function.__name__])


def refusal(name: str, why: str) -> str:
    """The message for a sampler that cannot be guided."""
    return f"JEPA guidance does not support the sampler {name!r}: {why}. {OTHERS}"
