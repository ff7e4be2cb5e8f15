"""The host's samplers with a shift written into their source: the plain reference for what guidance does.

The host's source is read, one statement is added at the top of each sampler's loop, and the result is run in a separate
module. Nothing of the pack is used.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import comfy.extra_samplers.uni_pc
import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from torch import Tensor

# (state, sigma, step) -> shifted state
Shift = Callable[[Tensor, Tensor, int], Tensor]

# The variable with a sampler's state, if it is not x.
STATES = {
    "sample_ipndm": "x_next",
    "sample_ipndm_v": "x_next",
    "sample_deis": "x_next",
    "sample_sa_solver": "x_pred",
}


class _Insert(ast.NodeTransformer):
    """Shift the state at the top of every sampler's loop; in sa_solver also the state from its corrector."""

    def __init__(self) -> None:
        self.function = ""
        self.inserted: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.function = node.name
        self.generic_visit(node)
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        loops = ast.unparse(node.iter)
        if self.function == "dpm_solver_fast":
            sigma = "self.sigma(ts[i])"
        elif loops.startswith("trange(") and ast.unparse(node.target) == "i":
            sigma = "sigmas[i]"
        else:
            return node
        name = STATES.get(self.function, "x")
        node.body[:0] = ast.parse(f"{name} = __shift__({name}, {sigma}, i)").body
        self.inserted.append(self.function)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if self.function == "sample_sa_solver" and ast.unparse(node.test) == "corrector_order_used == 0":
            # the corrected state replaces the shifted one; it gets the same shift before it is evaluated again
            again = next(
                i for i, part in enumerate(node.orelse) if ast.unparse(part).startswith("if use_pece")
            )
            node.orelse[again:again] = ast.parse("x = __shift__.again(x, i)").body
        return node


class _Shifter:
    """A shift that can be repeated, by the same amount, on another tensor."""

    def __init__(self, shift: Shift) -> None:
        self.shift = shift
        self.changes: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, sigma: Tensor, step: int) -> Tensor:
        shifted = self.shift(x, sigma, step)
        self.changes[step] = x - shifted
        return shifted

    def again(self, x: Tensor, step: int) -> Tensor:
        return x - self.changes[step]


def shifted_module(shift: Shift) -> ModuleType:
    """The host's module of samplers with the shift in every loop."""
    tree = ast.parse(inspect.getsource(comfy.k_diffusion.sampling))
    insert = _Insert()
    tree = ast.fix_missing_locations(insert.visit(tree))
    assert "sample_euler" in insert.inserted
    module = ModuleType("comfy.k_diffusion.shifted")
    module.__package__ = "comfy.k_diffusion"
    module.__dict__["__shift__"] = _Shifter(shift)
    exec(compile(tree, "shifted samplers", "exec"), module.__dict__)
    return module


class _ShiftedUniPC(comfy.extra_samplers.uni_pc.UniPC):
    """UniPC with its state shifted at every evaluation, both predicted and corrected.

    Its state is x / sqrt(1 + sigma^2), and so is the shift here.
    """

    shifter: _Shifter

    def sample(self, x: Tensor, timesteps: Tensor, **settings: Any) -> Tensor:
        self.timesteps = timesteps
        self.evaluate = self.model_fn
        self.model_fn = self._evaluate_shifted  # type: ignore[method-assign]
        return super().sample(x, timesteps, **settings)

    def _step(self, t: Tensor) -> int:
        return int((self.timesteps == t.flatten()[0]).nonzero()[0])

    def _evaluate_shifted(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = t.flatten()[0]
        scale = (1 + sigma**2).sqrt()
        return self.evaluate(self.shifter(x * scale, sigma, self._step(t)) / scale, t)

    def multistep_uni_pc_update(
        self, x: Tensor, models: list, times: list, t: Tensor, order: int, **settings: Any
    ):
        step = self._step(t)
        if step == 1:  # the start is evaluated, but does not come from an update
            x = self._changed(x, 0)
        new, answer = super().multistep_uni_pc_update(x, models, times, t, order, **settings)
        return (new if answer is None else self._changed(new, step)), answer

    def _changed(self, z: Tensor, step: int) -> Tensor:
        sigma = self.timesteps[step]
        return self.shifter.again(z * (1 + sigma**2).sqrt(), step) / (1 + sigma**2).sqrt()


@contextmanager
def shifted(shift: Shift) -> Iterator[None]:
    """Within the block, the host's samplers shift their state at the top of every step."""
    uni_pc = type("UniPC", (_ShiftedUniPC,), {"shifter": _Shifter(shift)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.samplers, "k_diffusion_sampling", shifted_module(shift))
        patch.setattr(comfy.extra_samplers.uni_pc, "UniPC", uni_pc)
        yield


def largest_entry_shift(
    direction: Callable[[Tensor], Tensor], guided: list[int], eta: float, flow: bool
) -> Shift:
    """The paper's update with a given direction, in the sampler's scale: x - eta * s(sigma) * g / max|g|."""

    def shift(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        if step not in guided:
            return x
        g = direction(x)
        g = g / g.abs().amax(tuple(range(1, g.ndim)), keepdim=True)
        return x - eta * (1.0 if flow else (1 + torch.as_tensor(sigma) ** 2).sqrt()) * g

    return shift
