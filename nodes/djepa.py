"""D-JEPA: a JEPA that generates, token by token."""

from comfy_api.latest import io

from ..host.generators.djepa import MAX_SEED, NO_CLASS, load_host_djepa, sample_djepa
from ..host.generators.djepa_files import djepa_file, djepa_names
from .checks import check_values, number_message
from .types import DJEPAModel

CATEGORY = "JEPA/D-JEPA"
MAX_CFG = 20.0
MAX_TEMPERATURE = 2.0


class DJEPALoader(io.ComfyNode):
    """A D-JEPA -> DJEPA, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = djepa_names()
        return io.Schema(
            node_id="DJEPALoader",
            display_name="D-JEPA Loader",
            category=CATEGORY,
            description="Loads a D-JEPA, a JEPA that generates images by predicting one set of masked tokens after the "
            "other (arXiv 2410.03755).",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=names,
                    default=names[0],
                    tooltip="The first one comes with this pack: 64 x 64 emoji, small and fast on a CPU. Others are "
                    ".safetensors files in models/djepa, made by research/training/djepa/train.py.",
                )
            ],
            outputs=[
                DJEPAModel.Output(display_name="djepa", tooltip="For D-JEPA Sampler."),
                io.Vae.Output(
                    display_name="VAE",
                    tooltip="Decodes and encodes its latents; empty for a file that brings no tokenizer.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        if not isinstance(model, str):
            raise ValueError(f"model must be a name, got {model!r:.100}")
        return io.NodeOutput(*load_host_djepa(djepa_file(model), model))


class DJEPASampler(io.ComfyNode):
    """A DJEPA and a class -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DJEPASampler",
            display_name="D-JEPA Sampler",
            category=CATEGORY,
            description="Draws images with a D-JEPA: tokens appear in random order, a few at first and more and more, each "
            "denoised given all that are there. Decode the latent with the loader's VAE.",
            inputs=[
                DJEPAModel.Input("djepa", tooltip="From D-JEPA Loader."),
                io.String.Input(
                    "class_name",
                    default=NO_CLASS,
                    tooltip="What to draw: a class of the model, or any. The emoji model has face, person, heart, hand, "
                    "sky, fruit and clock; a wrong name is answered with the list.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Image i of a batch is the image that seed + i gives alone.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=64, tooltip="How many images."),
                io.Int.Input(
                    "steps",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="In how many sets the tokens are predicted; at most as many as there are tokens (64 for the "
                    "emoji). More steps: each token knows more of the others, and the image holds together better.",
                ),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=0.0,
                    max=MAX_CFG,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance when all tokens are known; it grows from 1 as they appear. 1 is off "
                    "and twice as fast.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=MAX_TEMPERATURE,
                    step=0.01,
                    round=0.001,
                    tooltip="Size of the noise while a token is denoised: below 1 safer and plainer, above 1 wilder. The "
                    "paper takes 0.98 with cfg and 0.94 without.",
                ),
                io.Int.Input(
                    "denoising_steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps of each token's own denoising. The paper takes 100.",
                ),
                io.Float.Input(
                    "time_shift",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="For flow-matching models: above 1 more of the denoising steps lie near the noise. Ignored by "
                    "diffusion models.",
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="To redraw a part: a latent with a mask (Set Latent Noise Mask). Tokens that the mask does not "
                    "touch are kept as they are.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The tokens as a latent, for VAE Decode.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls, cfg: float | None = None, temperature: float | None = None, time_shift: float | None = None
    ) -> bool | str:
        # The host's own check lets NaN through.
        return (
            number_message("cfg", cfg, 0, MAX_CFG)
            or number_message("temperature", temperature, 0, MAX_TEMPERATURE)
            or number_message("time_shift", time_shift, 0.1, 10)
            or True
        )

    @classmethod
    def execute(cls, djepa, class_name, latent_image=None, time_shift=1.0, **settings) -> io.NodeOutput:
        values = {"djepa": djepa, "time_shift": time_shift, **settings}
        if latent_image is not None:
            values["latent_image"] = latent_image
        check_values(cls.define_schema().inputs, values)
        if not isinstance(class_name, str):
            raise ValueError(f"class_name must be text, got {class_name!r:.100}")
        latent = sample_djepa(
            djepa, class_name=class_name, time_shift=time_shift, latent=latent_image, **settings
        )
        return io.NodeOutput(latent)
