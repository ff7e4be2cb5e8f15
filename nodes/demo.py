"""JEPADemoLoader and JEPADemoClass: the demo generator for stock nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.generators.demo import demo_classes, demo_conditioning, load_demo_generator
from .search_words import search_words

CATEGORY = "JEPA/demo"


class JEPADemoLoader(io.ComfyNode):
    """Loads the demo generator -> MODEL, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPADemoLoader",
            display_name="JEPA Demo Generator",
            category=CATEGORY,
            description="Loads the small generator of avatars that comes with this pack (128 x 128 pixels, fast "
            "enough on a CPU). Try guidance without downloading a checkpoint: use it with JEPA Demo Class, "
            "an Empty Latent Image of 128 x 128 and any stock sampler.",
            **search_words("JEPADemoLoader", "demo, example, robot, avatar, test model"),
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The generator, for any sampler."),
                io.Vae.Output(display_name="VAE", tooltip="Its VAE. It suits only these avatars."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_generator())


class JEPADemoClass(io.ComfyNode):
    """A class of the demo generator -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPADemoClass",
            display_name="JEPA Demo Class",
            category=CATEGORY,
            description="Tells the demo generator what to draw, in place of a text prompt.",
            **search_words("JEPADemoClass", "demo, example, robot, avatar, prompt"),
            inputs=[
                io.Combo.Input(
                    "class_name",
                    options=demo_classes(),
                    default="robot",
                    tooltip="The kind of avatar to draw. Use the class any for the negative.",
                )
            ],
            outputs=[
                io.Conditioning.Output(display_name="CONDITIONING", tooltip="For positive or negative.")
            ],
        )

    @classmethod
    def execute(cls, class_name: str) -> io.NodeOutput:
        return io.NodeOutput(demo_conditioning(class_name))
