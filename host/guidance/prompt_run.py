"""One sampler call of MinorityPrompt: the stock sampler, with a model that learns the token at some steps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..comfy.memory import give_back, is_out_of_memory
from ..comfy.prompt import estimate, places_of, with_prompt
from ..comfy.required import KSAMPLER, UNetModel
from ..comfy.sampling import replaced_conditioning, sigma_at, signal_and_noise, time_left
from ..gradient.denoiser import differentiable_denoiser
from ..gradient.differentiable import differentiable_arguments, host_differentiable, writing_in_place
from ..gradient.estimate import NO_DERIVATIVE, NOT_DIFFERENTIABLE
from ..gradient.prompt_token import PromptToken, Vectors, distance, learn
from ..gradient.random_state import own_noise, random_state_kept
from ..gradient.residency import keep_whole, refuse_streamed
from .guided_model import GuidedModel, SamplerPlan
from .patch_state import PatchState
from .refusals import check_frames, check_schedule
from .sampler_probe import StepCount, probe_sampler
from .schedule import Schedule

KEY = "jepa_minority_prompt"  # of the wrappers, and of the text encoder that is attached to a MODEL
CACHED = "leaf Variable"  # torch's message about what a cache kept from the call before


@dataclass(frozen=True)
class PromptLearning:
    """How the token is learned.

    Attributes:
        schedule: at which steps; its strength is unused.
        iterations, learning_rate: of Adam, at each of these steps.
        balance: the paper's lambda, see prompt_token.distance.
        word: that the token starts as.
    """

    schedule: Schedule
    iterations: int = 10
    learning_rate: float = 0.01
    balance: float = 1.0
    word: str = "cool"


@dataclass(frozen=True)
class PromptPatch:
    """What a MODEL is patched with. Runs read it and never change it.

    Attributes:
        clip: see held_clip. token: the prompt. cond: its encoding without the token, (1, L, D).
        learning: the settings. on_pass: called after each iteration; may raise to stop.
    """

    clip: Any
    token: PromptToken
    cond: Tensor
    learning: PromptLearning
    on_pass: Callable[[], None]


class PromptRun:
    """The state of one sampler call.

    Attributes:
        vectors: the embeddings of each image's token; none before the first step.
        plain: the run's conditioning as it was given. places: the entries of the positive one that are the prompt.
    """

    def __init__(self, patch: PromptPatch, sampler: Any, guider: Any) -> None:
        if not isinstance(sampler, KSAMPLER):
            raise ValueError(
                f"MinorityPrompt does not support samplers of type {type(sampler).__name__}; use a stock one"
            )
        self.patch, self.stock, self.guider = patch, sampler, guider
        self.clip, self.learning = patch.clip, patch.learning
        self.base_model = guider.inner_model
        self.vectors: Vectors = {}
        self.checkpointing = False
        self.guarded = not isinstance(self.base_model.diffusion_model, UNetModel)  # others write in place

    def prepare(self) -> None:
        """Load what is differentiated. Raises ValueError if it does not fit on the device."""
        others = [self.guider.model_patcher, *self.guider.loaded_models]
        keep_whole([self.guider.model_patcher, self.clip.patcher], others)
        refuse_streamed(self.guider.model_patcher, "the model")
        refuse_streamed(self.clip.patcher, "the text encoder")

    def sampler(self) -> KSAMPLER:
        """The stock sampler with its function replaced by the one that learns."""
        return KSAMPLER(self.sample, self.stock.extra_options, self.stock.inpaint_options)

    def sample(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Any = None,
        callback: Any = None,
        disable: Any = None,
        **options: Any,
    ) -> Tensor:
        """Run the stock sampler function on a model that learns the token at the first call of some steps."""
        check_frames(x)
        check_schedule(sigmas)
        # x is not shifted, so it does not matter whether the sampler keeps a copy
        self.plan = probe_sampler(self.stock, sigmas, options, model, x.shape)._replace(carry=None)
        learning = self.learning.schedule.guided_steps(self.plan.steps)
        taught = GuidedModel(model, self.plan, learning, self.learned_call)
        count = StepCount(self.plan, self.stock)

        def after_step(state: dict) -> None:
            count.reported(taught.last)
            if callback is not None:
                callback(state)

        self.plain = self.guider.conds
        self.places = places_of(self.plain["positive"], self.patch.cond)
        with replaced_conditioning(self.guider, lambda conds: conds):
            result: Tensor = self.stock.sampler_function(
                taught, x, sigmas, extra_args=extra_args, callback=after_step, disable=disable, **options
            )
        return result

    def learned_call(self, model: Any, x: Tensor, sigmas: Tensor, kwargs: dict, step: int) -> Tensor:
        """Learn the token at x, then answer with it; it stays in the prompt until the next such step."""
        # patches of other nodes remember only the sampler's own call
        before = PatchState(kwargs.get("model_options", {}), self.base_model.diffusion_model)
        if not self.vectors:
            self.vectors = self.patch.token.start(self.clip, len(x))
        self.guider.conds = self.plain
        try:
            with random_state_kept(x.device):
                self.vectors = self.learned(model, x, sigmas, kwargs, step)
        finally:
            before.put_back()
        prompt = self.patch.token.encode(self.clip, self.vectors)
        self.guider.conds = self.with_token(self.plain, prompt, model, kwargs)
        answer: Tensor = model(x, sigmas, **kwargs)
        return answer

    def with_token(self, conds: dict, prompt: dict[str, Tensor], model: Any, kwargs: dict) -> dict:
        """The conditioning with this prompt in its places."""
        positive = [
            with_prompt(entry, prompt, model, kwargs) if place in self.places else entry
            for place, entry in enumerate(conds["positive"])
        ]
        return {**conds, "positive": positive}

    def learned(self, model: Any, x: Tensor, sigmas: Tensor, kwargs: dict, step: int) -> dict[str, Tensor]:
        """The embeddings after this step's iterations; with checkpointing from where memory runs out."""
        while True:
            try:
                return self._learned(model, x, sigmas, kwargs, step)
            except Exception as error:
                if is_out_of_memory(error) and not self.checkpointing:
                    self.checkpointing = True
                elif "inplace operation" in str(error) and not self.guarded:
                    self.guarded = True  # a ControlNet or a patch writes in place
                elif any(words in str(error) for words in (*NOT_DIFFERENTIABLE, CACHED)):
                    raise ValueError(
                        f"MinorityPrompt needs a gradient: {NO_DERIVATIVE}; remove it"
                    ) from error
                else:
                    raise
            # only after the except block is the failed attempt's memory free
            give_back()

    def _learned(self, model: Any, x: Tensor, sigmas: Tensor, kwargs: dict, step: int) -> dict[str, Tensor]:
        with (
            differentiable_denoiser(self.guider, KEY, checkpointing=self.checkpointing),
            host_differentiable(self.clip.cond_stage_model),
        ):
            kwargs, x, sigmas = differentiable_arguments(kwargs), x.clone(), sigmas.clone()
            conds, vectors = self.guider.conds, {name: own.clone() for name, own in self.vectors.items()}
            again = NoisedAgain(self.base_model.model_sampling, self.plan, step)

            def objective(prompt: dict[str, Tensor], iteration: int) -> Tensor:
                learnt = self.with_token(conds, prompt, model, kwargs)["positive"]
                clean = estimate(model, learnt, x, sigmas, kwargs)
                noise = own_noise(x[:1], (kwargs.get("seed"), float(sigmas[0]), iteration))
                level = torch.full_like(sigmas, again.sigma)
                other = estimate(model, conds["positive"], again(clean, noise), level, kwargs)
                return distance(clean, other, self.learning.balance)

            return learn(
                vectors,
                lambda vectors: self.patch.token.encode(self.clip, vectors),
                objective,
                self.learning.iterations,
                self.learning.learning_rate,
                writing_in_place if self.guarded else nullcontext,
                self.patch.on_pass,
            )


class NoisedAgain:
    """Noises a clean estimate to as much of the diffusion time as has passed at the end of a step (the authors' rule).

    Attributes:
        sigma: the noise level.
    """

    def __init__(self, model_sampling: Any, plan: SamplerPlan, step: int) -> None:
        left = time_left(model_sampling, torch.tensor(plan.sigmas[step + 1]))
        self.sigma = sigma_at(model_sampling, 1 - left)
        self._signal, self._deviation = signal_and_noise(model_sampling, torch.tensor(self.sigma))

    def __call__(self, clean: Tensor, noise: Tensor) -> Tensor:
        return (self._signal * clean + self._deviation * noise).to(clean)
