"""The patches of this pack that a MODEL brings."""

from typing import Any

from ..comfy.sampling import sampler_wrapper, unwrapped
from ..options import BOOST, CADS, MINORITY_PROMPT
from ..variety.patch import BOOST_KEY, CADS_KEY
from .attachment import guidance_of
from .guidance import KEY
from .prompt_run import KEY as PROMPT_KEY

_OTHERS = {PROMPT_KEY: MINORITY_PROMPT, BOOST_KEY: BOOST, CADS_KEY: CADS}


def brought(model: Any) -> list[str]:
    """The nodes whose patches a MODEL has, as users know them."""
    guidance = guidance_of(model)
    others = [name for key, name in _OTHERS.items() if sampler_wrapper(model, key) is not None]
    return [*([guidance.by] if guidance else []), *others]


def without_patches(model: Any) -> Any:
    """A clone of MODEL without all that nodes of this pack did to it."""
    for key in (KEY, *_OTHERS):
        model = unwrapped(model, key)
    return model


def replaced(model: Any, name: str) -> str:
    """What to say on a node of this name that replaces what one like it did to the MODEL; "" if there is nothing."""
    return f"replaces {name}, which the model brought" if name in brought(model) else ""
