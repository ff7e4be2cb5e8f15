"""Nodes for the test server: one counts live tensors, two cause failures, and one runs a node again, as loops do."""

import gc
from typing import Any

import torch
from comfy_execution.graph_utils import GraphBuilder


class LiveTensors:
    """Counts the live tensors in the server's process, and their bytes."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "count", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"after": ("IMAGE",)}}

    def count(self, after: torch.Tensor) -> dict:
        gc.collect()
        # not isinstance: it would trigger lazy proxies
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        storages = [tensor.untyped_storage() for tensor in found if tensor.layout is torch.strided]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return {"ui": {"tensors": [len(found)], "bytes": [sum(sizes.values())]}}


class NotANumber:
    """Makes the first number of a latent NaN."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "spoil", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"samples": ("LATENT",)}}

    def spoil(self, samples: dict) -> tuple:
        spoilt = samples["samples"].clone()
        spoilt.view(-1)[0] = float("nan")
        return ({**samples, "samples": spoilt},)


class FailingModel:
    """A model whose denoiser raises when it is called for the `call`th time."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "call": ("INT", {"default": 1})}}

    def patch(self, model: Any, call: int) -> tuple:
        calls = []

        def denoise(apply_model: Any, args: dict) -> torch.Tensor:
            calls.append(1)
            if len(calls) == call:
                raise RuntimeError("the denoiser failed on purpose")
            return apply_model(args["input"], args["timestep"], **args["c"])

        patched = model.clone()
        patched.set_model_unet_function_wrapper(denoise)
        return (patched,)


class Again:
    """Runs a copy of the node that it is linked to, with an id of its own, and gives out what the copy gives."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "again", ("*",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"first": ("*", {"rawLink": True})}, "hidden": {"dynprompt": "DYNPROMPT"}}

    def again(self, first: list, dynprompt: Any) -> dict:
        name, output = first
        node, graph = dynprompt.get_node(name), GraphBuilder()
        copy = graph.node(node["class_type"], name, **node["inputs"])
        copy.set_override_display_id(name)
        return {"result": (copy.out(output),), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (LiveTensors, NotANumber, FailingModel, Again)}
