"""JEPAPromptReference: what counts as usual, from what a prompt draws by itself."""

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.comfy.sampling import MAX_SEED, seeds_from
from ..host.guidance.brought import brought, without_patches
from ..host.guidance.refusals import check_vae_fits
from ..host.scoring.modes import how_of
from ..host.scoring.prompt_pictures import check_one_picture, draw_pictures
from ..host.scoring.reference import make_reference, reference_scores
from .input_checks import check_values, inputs_of
from .reference import REFERENCE_ENCODER, USES, summary
from .sampling_inputs import missing_sampler, sampling_inputs
from .scoring_inputs import reference_inputs
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPAPromptReference(io.ComfyNode):
    """A prompt's own pictures -> a reference.

    The result is kept by the host's cache of outputs, for as long as nothing that leads here changes. A cache of this node
    could not do better: no two patched models or conditionings are known to be alike unless they are the same objects.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAPromptReference",
            display_name="JEPA Prompt Reference",
            category="JEPA",
            description="Makes a reference from what this prompt draws without guidance, with many seeds and few steps: "
            "what is rare is then what is unlike the prompt's usual pictures. They are drawn once, until an input changes.",
            **search_words("JEPAPromptReference", "novelty, usual, same face, prompt average, unlike"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that draws. Guidance of a MODEL from JEPA Guidance is left out.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                io.Conditioning.Input("positive", tooltip="What the pictures should show."),
                io.Conditioning.Input("negative", tooltip="What the pictures should not show."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Its size is that of the pictures; its content and number of images do not matter.",
                ),
                JEPAEncoder.Input("encoder", tooltip=REFERENCE_ENCODER),
                io.Int.Input(
                    "first_seed",
                    default=1_000_000,
                    min=0,
                    max=MAX_SEED,
                    tooltip="The seed of the first picture; the others have the seeds after it. Each is what KSampler gives "
                    "alone. Stay clear of the seeds of the pictures that you compare.",
                ),
                io.Int.Input(
                    "count",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="How many pictures. More tell more finely what is rare: with 32, one picture is 3 percent.",
                ),
                *sampling_inputs(
                    steps=8,
                    steps_tip="Sampling steps of each picture. Fewer are faster; with fewer than in the sampler, "
                    "the pictures also differ from its own in quality.",
                    cfg_tip="Classifier-free guidance; the same as in the sampler.",
                    sampler_tip="The sampling algorithm.",
                ),
                *reference_inputs(),
            ],
            outputs=[
                JEPAReference.Output(display_name="reference", tooltip=USES),
                io.Image.Output(display_name="images", tooltip="The pictures, in the order of their seeds."),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="The seed of each picture, for JEPA Rank Images.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, vae, encoder, latent_image, first_seed, count, mode, top_k, fit, antialias, **sampling
    ) -> io.NodeOutput:
        settings = {"mode": mode, "top_k": top_k, "fit": fit, "antialias": antialias}
        parts = {"model": model, "vae": vae, "encoder": encoder, "latent_image": latent_image}
        check_values(
            inputs_of(JEPAPromptReference),
            {**parts, "first_seed": first_seed, "count": count, **settings, **sampling},
        )
        if message := missing_sampler(sampling["sampler_name"]):
            raise ValueError(message)
        check_one_picture(latent_image)
        check_vae_fits(vae, model)
        images = draw_pictures(
            without_patches(model),
            vae,
            latent_image,
            first_seed=first_seed,
            count=count,
            on_picture=lambda number: show_text(
                cls.hidden.unique_id, f"drawing reference image {number + 1} of {count}"
            ),
            **sampling,
        )
        bar = ProgressBar(count * len(encoder.members))
        reference = make_reference(
            images,
            encoder,
            how_of(**settings),
            on_image=lambda: bar.update(1),
        )
        text = summary(reference, reference_scores(reference, encoder))
        if names := brought(model):
            text += f"\ndrawn without {' and '.join(names)}, which the model brought"
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(reference, images, seeds_from(first_seed, count))
