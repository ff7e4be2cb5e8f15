"""Model calls of the host with a denoiser that can be differentiated."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..comfy.backward_ops import torch_attention
from ..comfy.models import casts_weights_by_hand
from ..comfy.sampling import denoising_modules, replaced_conditioning
from .compiled import uncompiled
from .differentiable import host_differentiable, normal_tensors
from .lean import saving_memory


@contextmanager
def differentiable_denoiser(guider: Any, key: str, *, checkpointing: bool) -> Iterator[None]:
    """Within the block, model calls of a run can be differentiated with respect to x. The backward pass must run in it too.

    Args:
        guider: the host's guider of this run.
        key: the key of models that are loaded together with the denoiser but take no part in its calls.
        checkpointing: less memory; the forward pass runs twice.
    """
    modules = denoising_modules(guider, key)
    with ExitStack() as stack:
        for context in (
            uncompiled(*modules),
            host_differentiable(*modules),
            torch_attention(),
            replaced_conditioning(guider, normal_tensors),
            # otherwise autograd keeps a copy of every weight that is cast when it is used
            saving_memory(*modules, checkpointing=checkpointing or casts_weights_by_hand(guider.inner_model)),
        ):
            stack.enter_context(context)
        yield
