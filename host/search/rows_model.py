"""The host's model, called for some candidates of a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ..comfy.memory import give_back, is_out_of_memory
from ..comfy.required import get_free_memory
from ..comfy.sampling import replaced_conditioning
from ..gradient.rows import rows, rows_of_attributes
from ..guidance.model_calls import HELD, POST_CFG, post_cfg_hooks
from ..guidance.patch_state import PatchState

# What a post-CFG hook sees of the batch.
_OF_THE_BATCH = ("denoised", "cond_denoised", "uncond_denoised", "input")
# The host splits a call whose estimated memory, times this, is more than what is free.
_MARGIN = 1.5

Change = Callable[[Any, Sequence[int]], Any]


class RowsCall(NamedTuple):
    """A model call for some candidates: the model, and its arguments."""

    model: Any
    x: Tensor
    sigma: Tensor
    kwargs: dict


class RowsModel:
    """Calls the model for some candidates of the batch, as many at a time as fit in memory.

    Args:
        model: what the host passes to sampler functions, for the whole batch.
        guider: the host's guider of this run.
        batch: rows of the whole batch.
        options: the model options of the run. Later post-CFG hooks are the sampler's own.
        at_once: candidates in one call; 0 for as many as fit.
        on_rows: called with the number of candidates after every call; may raise to stop.
    """

    def __init__(
        self,
        model: Any,
        guider: Any,
        batch: int,
        *,
        options: dict,
        at_once: int,
        on_rows: Callable[[int], None],
    ) -> None:
        self._model = model
        self._guider = guider
        self._batch = batch
        self._model_hooks = len(options.get(POST_CFG, []))
        # Patches of other nodes, such as caches and momentum, remember tensors of the rows of the last call.
        self._fresh = PatchState(options, guider.inner_model.diffusion_model)
        self._last: list[int] | None = None
        # Conditioning of some of the candidates that are left; kept, so that ControlNets prepare their hints once.
        self._cut: dict[tuple[int, ...], Any] = {}
        self._left: list[int] = []
        self._at_once = at_once
        self._on_rows = on_rows

    def estimates(
        self, left: Sequence[int], x: Tensor, sigma: Tensor, kwargs: dict, change: Change | None = None
    ) -> Tensor:
        """The clean estimates (B, ...) at x (B, ...). Those of rows that are not left are x itself, which keeps it finite.

        Args:
            left: the candidates, ascending.
            change: makes other conditioning of that of some candidates, given with their rows.
        """
        if self._left != left:
            self._left, self._cut = list(left), {}
        answer = x.clone()
        seen: list[dict[str, Tensor]] = [{} for _ in post_cfg_hooks(kwargs)]
        rest = list(left)
        size = self._at_once or rows_that_fit(self._guider.inner_model, x.shape, get_free_memory(x.device))
        while rest:
            chosen = rest[:size]
            try:
                with self.of(chosen, x, sigma, kwargs, change, seen) as call:
                    part = call.model(call.x, call.sigma, **call.kwargs)
            except Exception as error:
                if not is_out_of_memory(error) or len(chosen) == 1:
                    raise
                size = self._at_once = len(chosen) // 2
            else:
                answer[chosen] = part
                rest = rest[size:]
                self._on_rows(len(chosen))
                continue
            # only after the except block is the failed call's memory free
            self._fresh.put_back()
            give_back()
        return answer

    @contextmanager
    def of(
        self,
        chosen: Sequence[int],
        x: Tensor,
        sigma: Tensor,
        kwargs: dict,
        change: Change | None = None,
        seen: Sequence[dict[str, Tensor]] | None = None,
    ) -> Iterator[RowsCall]:
        """Within the block, the model can be called for these candidates. Patches with a memory begin anew for other ones.

        Args:
            change: see estimates.
            seen: for each post-CFG hook, what it has seen of this step's estimates; None begins anew.
        """
        if self._last is not None and self._last != list(chosen):
            self._fresh.forget_images()
        self._last = list(chosen)
        if len(chosen) == self._batch and change is None:
            yield RowsCall(self._model, x, sigma, kwargs)
            return
        hooks = post_cfg_hooks(kwargs)
        own = rows({"sigma": sigma, "mask": kwargs.get("denoise_mask")}, chosen, self._batch)
        cut = dict(kwargs)
        if "denoise_mask" in kwargs:
            cut["denoise_mask"] = own["mask"]
        if hooks[self._model_hooks :]:
            held = seen or [{} for _ in hooks]
            wide = [
                _of_whole_batch(hook, chosen, x, full)
                for hook, full in zip(hooks[self._model_hooks :], held[self._model_hooks :], strict=True)
            ]
            cut["model_options"] = {
                **kwargs["model_options"],
                POST_CFG: [*hooks[: self._model_hooks], *wide],
            }

        def conditioning(conds: Any) -> Any:
            key = tuple(chosen)
            if key not in self._cut:
                self._cut[key] = rows(conds, chosen, self._batch)
            return change(self._cut[key], chosen) if change else self._cut[key]

        model = rows_of_attributes(self._model, HELD, chosen, self._batch)
        with replaced_conditioning(self._guider, conditioning):
            yield RowsCall(model, x[chosen], own["sigma"], cut)


def rows_that_fit(base_model: Any, shape: Sequence[int], free: float) -> int:
    """How many rows of a batch of this shape a denoiser call has room for, by the host's own estimate; at least 1."""
    alone = base_model.memory_required([1, *shape[1:]]) * _MARGIN
    return max(1, min(shape[0], int(free // max(alone, 1))))


def _of_whole_batch(
    hook: Callable[[dict], Tensor], chosen: Sequence[int], x: Tensor, full: dict[str, Tensor]
) -> Callable[[dict], Tensor]:
    """A post-CFG hook of the sampler for a call on some candidates: the sampler sees its whole batch.

    Args:
        full: what the hook has seen so far in this step, by name.
    """

    def seen(args: dict) -> Tensor:
        for name in _OF_THE_BATCH:
            if args.get(name) is not None:
                full.setdefault(name, x.clone())[chosen] = args[name].detach().to(x)
        answer = hook({**args, **full})
        denoised: Tensor = args["denoised"] if answer is full["denoised"] else answer[chosen]
        return denoised

    return seen
