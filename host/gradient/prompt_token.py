"""MinorityPrompt: one token of the prompt, learned during the run, so that the model is less sure of what it draws.

Um, Ye: "Minority-Focused Text-to-Image Generation via Prompt Optimization", CVPR 2025, arXiv 2410.07838; details after the
authors' code, github.com/soobin-um/MinorityPrompt (batch_prompt_opt). A token is appended to the prompt, and Adam moves its
input embedding up the distance of x0, the clean estimate with the token, from x0', that of x0 noised again and denoised with
the prompt as written. Neither uses classifier-free guidance. Each image has a token of its own, which stays for the rest of
the run; Adam begins anew at each step. SDXL's two text encoders have a token each.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..comfy.prompt import encoded, input_embedding, text_encoder
from .differentiable import writing_in_place
from .ordered import no_switch_left

Vectors = dict[str, Tensor]  # {text encoder: (B, D)}, the input embedding of each image's token
# Networks that compute in float16 lose entries below 6e-8; those of a norm's gradient at a latent are about this small.
_UNIT = 128.0
_LEAD = "a"  # the word is looked up after another one: some tokenisers join it with the space before it


@dataclass(frozen=True)
class PromptToken:
    """A prompt that ends in a token to be learned.

    Attributes:
        tokens: the host's, {text encoder: sections of (token, weight)}. The learned token is the word that it starts as.
        places: {text encoder: (section, index)} of the learned token.
    """

    tokens: dict[str, list[list[tuple]]]
    places: dict[str, tuple[int, int]]

    def start(self, clip: Any, batch: int) -> Vectors:
        """The embeddings of the word that the token starts as, for each image."""
        words = {name: self.tokens[name][section][index][0] for name, (section, index) in self.places.items()}
        rows = {name: input_embedding(clip, name, word) for name, word in words.items()}
        return {name: row.detach().expand(batch, -1).clone() for name, row in rows.items()}

    def encode(self, clip: Any, vectors: Vectors) -> dict[str, Tensor]:
        """The prompt of each image, as of comfy.prompt.encoded, with B rows."""
        batch = len(next(iter(vectors.values())))
        rows = [
            encoded(clip, self._with({name: own[row] for name, own in vectors.items()}))
            for row in range(batch)
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _with(self, vectors: Mapping[str, Tensor]) -> dict[str, list[list[tuple]]]:
        changed = dict(self.tokens)
        for name, (section, index) in self.places.items():
            sections = [list(one) for one in self.tokens[name]]
            sections[section][index] = (vectors[name], *sections[section][index][1:])
            changed[name] = sections
        return changed


def prompt_token(clip: Any, text: str, word: str) -> PromptToken:
    """The prompt `text` with a token at its end that starts as `word`.

    Raises:
        ValueError: no text encoder takes embeddings, or the word is not a single token of one that does.
    """
    lead, both, plain = (clip.tokenize(one) for one in (_LEAD, f"{_LEAD} {word}", text))
    tokens, places = dict(plain), {}
    for name, sections in clip.tokenize(f"{text} {word}").items():
        if text_encoder(clip, name) is None:
            continue  # it is not loaded, as SD3's T5 may be, and its tokens are not read
        tokens[name] = sections
        number = _only_addition(_numbers(lead[name]), _numbers(both[name]))
        found = [
            (i, j)
            for i, section in enumerate(sections)
            for j, one in enumerate(section)
            if _number(one) == number
        ]
        if number is None or len(found) != _numbers(plain[name]).count(number) + 1:
            raise ValueError(
                f"word {word!r} is not one token of the text encoder {name!r}; choose a short, common word such as 'cool'"
            )
        places[name] = found[-1]
    if not places:
        raise ValueError(
            "MinorityPrompt cannot give the text encoder of this CLIP a token to learn; connect the CLIP of a model such as "
            "SD 1.5 or SDXL"
        )
    return PromptToken(tokens, places)


def _number(one: tuple) -> int | None:
    """The number of a token; None for an embedding in its place."""
    return one[0] if isinstance(one[0], int) else None


def _numbers(sections: list[list[tuple]]) -> list[int | None]:
    return [_number(one) for section in sections for one in section]


def _only_addition(before: list, after: list) -> int | None:
    """The token that `after` has and `before` has not, if everything else only moved on; None otherwise."""
    pairs = enumerate(zip(before, after, strict=False))
    place = next((i for i, (one, other) in pairs if one != other), len(before))
    rest = after[place + 1 :]
    return after[place] if place < len(after) and rest == before[place : place + len(rest)] else None


def distance(clean: Tensor, again: Tensor, balance: float) -> Tensor:
    """The paper's objective for each image, (B,): ||sg(x0) - x0'|| + balance ||x0 - sg(x0')||, sg holding constant."""
    first = (clean.detach() - again).flatten(1).norm(dim=1)
    second = (clean - again.detach()).flatten(1).norm(dim=1)
    return first + balance * second


def learn(
    vectors: Vectors,
    encode: Callable[[Vectors], dict[str, Tensor]],
    objective: Callable[[dict[str, Tensor], int], Tensor],
    iterations: int,
    learning_rate: float,
    guard: Callable[[], AbstractContextManager],
    on_pass: Callable[[], None],
) -> Vectors:
    """Move embeddings up the objective by Adam, and return them. Call it where networks can be differentiated.

    Args:
        encode: embeddings -> prompts with B rows.
        objective: (prompts, iteration) -> (B,).
        guard: a context that the objective needs while its graph is alive.
        on_pass: called after each iteration; may raise to stop.
    """
    leaves = {name: own.clone().requires_grad_() for name, own in vectors.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=learning_rate, maximize=True)
    for iteration in range(iterations):

        def now(prompts: dict[str, Tensor], iteration: int = iteration) -> Tensor:
            return objective(prompts, iteration)

        gradients = token_gradients(leaves, encode, now, guard)
        for name, own in leaves.items():
            own.grad = gradients[name]
        optimiser.step()
        on_pass()
    return {name: own.detach() for name, own in leaves.items()}


def token_gradients(
    leaves: Vectors,
    encode: Callable[[Vectors], dict[str, Tensor]],
    objective: Callable[[dict[str, Tensor]], Tensor],
    guard: Callable[[], AbstractContextManager],
) -> Vectors:
    """The gradient of the objective's sum, in two parts: at the prompts, then through the text encoders.

    So the graphs of the denoiser and of the text encoders are never in memory together.

    Raises:
        ValueError: the objective does not depend on the tokens.
    """
    with torch.no_grad():
        prompts = encode(leaves)
    inner = {name: part.detach() for name, part in prompts.items() if part.is_floating_point()}
    for part in inner.values():
        part.requires_grad_()
    with guard(), no_switch_left():
        total = objective(prompts | inner).sum() * _UNIT
        found = (
            torch.autograd.grad(total, tuple(inner.values()), allow_unused=True)
            if total.requires_grad
            else []
        )
        del total
    reached = {name: one / _UNIT for name, one in zip(inner, found, strict=False) if one is not None}
    # the host's text encoders write into their residual stream
    with writing_in_place(), no_switch_left():
        parts = encode(leaves)
        pairs = [(parts[name], one) for name, one in reached.items() if parts[name].requires_grad]
        if not pairs:
            raise ValueError(
                "MinorityPrompt cannot reach the prompt's token: this model's image does not depend on it, or a patch has "
                "no derivative (a cache such as EasyCache). Remove the patch, or connect another model."
            )
        outputs, cotangents = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(outputs, tuple(leaves.values()), cotangents, allow_unused=True)
    # a text encoder whose output the model does not use
    return {
        name: torch.zeros_like(own) if one is None else one
        for (name, own), one in zip(leaves.items(), gradients, strict=True)
    }
