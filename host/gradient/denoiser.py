"""Model calls of the host whose denoiser can be differentiated."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..comfy.autograd import torch_attention
from ..comfy.models import casts_weights_by_hand
from ..comfy.sampling import denoising_modules, replaced_conditioning
from .autograd import host_differentiable, normal_tensors
from .checkpointing import checkpointed
from .compiled import uncompiled


@contextmanager
def differentiable_denoiser(guider: Any, apart: str, *, checkpointing: bool) -> Iterator[None]:
    """Within the block, model calls of a run can be differentiated with respect to x; so it runs forward and backward.

    Args:
        guider: the host's, of the run at hand.
        apart: the key of models that are loaded together with the denoiser but take no part in its calls.
        checkpointing: keep less for the backward pass, and compute it again.
    """
    modules = denoising_modules(guider, apart)
    with ExitStack() as stack:
        for context in (
            uncompiled(*modules),
            host_differentiable(*modules),
            torch_attention(),
            replaced_conditioning(guider, normal_tensors),
        ):
            stack.enter_context(context)
        # autograd would keep a copy of every weight that is cast where it is used
        if checkpointing or casts_weights_by_hand(guider.inner_model):
            stack.enter_context(checkpointed(*modules))
        yield
