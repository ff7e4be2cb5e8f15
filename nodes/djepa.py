"""DJEPALoader and DJEPASampler: a JEPA that generates images, token by token."""

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.comfy.sampling import MAX_SEED, seeds_from
from ..host.generators.djepa import NO_CLASS, load_host_djepa, sample_djepa
from ..host.generators.djepa_menu import djepa_file, djepa_names, djepa_tokenizer
from .input_checks import check_values, inputs_of
from .search_words import search_words
from .types import DJEPAModel

CATEGORY = "JEPA/D-JEPA"
MAX_CFG = 20.0
MAX_TEMPERATURE = 2.0


class DJEPALoader(io.ComfyNode):
    """Loads a D-JEPA -> DJEPA, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = djepa_names()
        return io.Schema(
            node_id="DJEPALoader",
            display_name="D-JEPA Loader",
            category=CATEGORY,
            description="Loads a D-JEPA, a JEPA that generates images: it predicts masked tokens, one set after another "
            "(arXiv 2410.03755).",
            **search_words("DJEPALoader", "autoregressive, masked, token, avatar"),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=names,
                    default=names[0],
                    tooltip="The first one comes with this pack: 128 x 128 avatars, small and fast on a CPU. Others are "
                    ".safetensors files in models/djepa, trained with research/training/djepa/train.py.",
                )
            ],
            outputs=[
                DJEPAModel.Output(display_name="djepa", tooltip="For D-JEPA Sampler."),
                io.Vae.Output(
                    display_name="VAE",
                    tooltip="Decodes and encodes the model's latents. Empty if the file has no tokenizer.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        if not isinstance(model, str):
            raise ValueError(f"model must be a name, got {model!r:.100}")
        return io.NodeOutput(*load_host_djepa(djepa_file(model), model, djepa_tokenizer(model)))


class DJEPASampler(io.ComfyNode):
    """Draws images of a class with a DJEPA -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DJEPASampler",
            display_name="D-JEPA Sampler",
            category=CATEGORY,
            description="Draws images with a D-JEPA. Tokens appear in random order, a few at first, then more at a time; "
            "each is denoised in view of those already there. Decode the latent with the loader's VAE.",
            **search_words("DJEPASampler", "autoregressive, masked, token, inpaint"),
            inputs=[
                DJEPAModel.Input("djepa", tooltip="From D-JEPA Loader."),
                io.String.Input(
                    "class_name",
                    default=NO_CLASS,
                    tooltip="What to draw: a class of the model, or any. The model of this pack has robot, pixel face, "
                    "bust, big smile, comic head and emoji. For another model, the error message for an unknown name "
                    "lists its classes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The same seed gives the same image. Image i of a batch is what seed + i gives on its own.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=64, tooltip="How many images."),
                io.Int.Input(
                    "steps",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="More steps make the image more coherent, since each token sees more of the others. The number "
                    "of sets in which the tokens are predicted: with more steps than tokens (64 in this pack's model, "
                    "fewer inside a mask), there is one for each.",
                ),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=0.0,
                    max=MAX_CFG,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely to follow the class: the classifier-free guidance scale. It grows from 1 to this "
                    "value as tokens appear. 1 is off and twice as fast.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=MAX_TEMPERATURE,
                    step=0.01,
                    round=0.001,
                    tooltip="Below 1 safer and plainer, above 1 wilder: scales the noise while a token is denoised. The "
                    "paper uses 0.98 with cfg and 0.94 without.",
                ),
                io.Int.Input(
                    "denoising_steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Denoising steps for each token; fewer are faster. The paper uses 100.",
                ),
                io.Float.Input(
                    "time_shift",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="For flow-matching models: above 1, more of the denoising steps are spent at high noise. "
                    "Diffusion models ignore it.",
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="Redraws part of an image: a latent with a mask (Set Latent Noise Mask). Tokens that the mask "
                    "does not touch stay as they are.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The tokens as a latent, for VAE Decode."),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="The seed that gives each image alone, for JEPA Rank Images.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, djepa, class_name, latent_image=None, time_shift=1.0, **settings) -> io.NodeOutput:
        values = {"djepa": djepa, "class_name": class_name, "time_shift": time_shift, **settings}
        if latent_image is not None:
            values["latent_image"] = latent_image
        check_values(inputs_of(DJEPASampler), values)
        latent = sample_djepa(
            djepa,
            class_name=class_name,
            time_shift=time_shift,
            latent=latent_image,
            say=lambda text: show_text(cls.hidden.unique_id, text),
            **settings,
        )
        return io.NodeOutput(latent, seeds_from(settings["seed"], settings["batch_size"]))
