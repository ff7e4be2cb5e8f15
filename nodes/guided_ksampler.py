"""JEPAGuidedKSampler: the stock KSampler plus guidance."""

from comfy_api.latest import io

from ..host.comfy.sampling import MAX_SEED, stock_sample
from ..host.guidance.notes import note_in_images
from ..host.guidance.patch import apply_guidance
from ..host.guidance.refusals import check_finite, check_frames
from ..host.guidance.report import TraceReporter
from ..host.guidance.trace import Trace
from .guidance_inputs import config_of, guidance_inputs, guides_nothing, off_text
from .input_checks import check_values, inputs_of
from .sampling_inputs import sampler_message, sampling_inputs
from .search_words import search_words
from .types import JEPATrace


class JEPAGuidedKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAGuidedKSampler",
            display_name="JEPA Guided KSampler",
            category="JEPA",
            description="KSampler, guided toward images that the encoder finds rare: same prompt, same seed, rarer image. "
            "With strength 0 it is the stock KSampler, bit for bit.",
            **search_words(
                "rare, rarity, rarer, diversity, variation, seed variance, unusual, novelty, "
                "minority, same face, creative"
            ),
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that denoises the latent."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The random seed of the noise. The same seed gives the same image.",
                ),
                *sampling_inputs(
                    steps=20,
                    steps_tip="The number of denoising steps.",
                    cfg_tip="Classifier-free guidance: how closely to follow the prompt.",
                    sampler_tip="The sampling algorithm. dpm_adaptive cannot be guided.",
                ),
                io.Conditioning.Input("positive", tooltip="What the image should show."),
                io.Conditioning.Input("negative", tooltip="What the image should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much is denoised. Below 1 keeps structure of the latent, for image to image.",
                ),
                *guidance_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                JEPATrace.Output(
                    display_name="trace",
                    tooltip="What guidance did at each step: sigma, score and novelty under guides and judge, what the "
                    "target left of the strength, the gradient norm and the size of the shift.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent_image,
        denoise,
        **settings,
    ) -> io.NodeOutput:
        sampling = {
            "steps": steps,
            "cfg": cfg,
            "sampler_name": sampler_name,
            "scheduler": scheduler,
            "denoise": denoise,
        }
        report = TraceReporter(cls.hidden.unique_id)
        if guides_nothing(settings):
            report(Trace(instead=off_text(model, "this is the stock sampler's image")))
        else:
            # not the seed: the stock sampler takes any through a link
            values = {"model": model, "latent_image": latent_image} | sampling | settings
            check_values(inputs_of(JEPAGuidedKSampler), values)
            if message := sampler_message(sampler_name):
                raise ValueError(message)
            encoders = (one for one in (settings["encoder"], settings.get("judge")) if one is not None)
            check_frames(latent_image["samples"], *encoders)
            check_finite(latent_image["samples"])
            model = apply_guidance(
                model,
                settings["vae"],
                settings["encoder"],
                config_of(settings),
                judge=settings.get("judge"),
                reference=settings.get("reference"),
                report=report,
            )
        latent = stock_sample(
            model,
            latent_image,
            seed=seed,
            positive=positive,
            negative=negative,
            **sampling,
        )
        node_settings = {"seed": seed} | sampling | settings
        note_in_images(cls.hidden, node_settings, report.trace.as_json())
        return io.NodeOutput(latent, report.trace, ui={"jepa_trace": [report.trace.as_json()]})
