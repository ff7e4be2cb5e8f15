"""What guidance has to know of a sampler: which model call begins which step, and where it keeps its state."""

from collections.abc import Callable

# By the name of their function: the sampler's own name, and why no step of it can be guided. Their own reasons say
# more than what a dry run finds.
REFUSED = {
    "dpm_adaptive_function": (
        "dpm_adaptive",
        "it chooses its steps as it goes, so none has a fixed place in the run",
    ),
    "sample_ar_video": ("ar_video", "it makes a video block by block"),
}
OTHERS = "Choose another, for instance euler, dpmpp_2m or uni_pc."


def sampler_name(function: Callable) -> str:
    """The name of a sampler function as a user knows it."""
    return getattr(function, "__name__", type(function).__name__).removeprefix("sample_")


def sampler_refusal(function: Callable) -> str | None:
    """Why this sampler cannot be guided, or None."""
    if getattr(function, "__name__", "") not in REFUSED:
        return None
    return refusal(*REFUSED[function.__name__])


def refusal(name: str, why: str) -> str:
    return f"JEPA guidance does not support the sampler {name!r}: {why}. {OTHERS}"


# --- dry runs -----------------------------------------------------------------------------------------------------
