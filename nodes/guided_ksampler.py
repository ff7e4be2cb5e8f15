"""JEPAGuidedKSampler: the stock KSampler plus guidance."""

from comfy_api.latest import io

from ..host.comfy.sampling import stock_sample
from ..host.guidance.notes import note_in_images
from ..host.guidance.report import TraceReporter
from .guidance_inputs import guides_nothing, values_of
from .guided_sampling import SAMPLING, check_all_but_seed, guided_model, guided_sampling_inputs
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
                "JEPAGuidedKSampler",
                "rare, rarity, rarer, diversity, variation, seed variance, unusual, novelty, "
                "minority, same face, too similar, boring, original, weird, creative, strength",
            ),
            inputs=guided_sampling_inputs(),
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
    def execute(cls, model, latent_image, **inputs) -> io.NodeOutput:
        sampling, noted = {name: inputs.pop(name) for name in SAMPLING}, inputs
        if not guides_nothing(inputs):
            values = {"model": model, "latent_image": latent_image, **sampling, **inputs}
            check_all_but_seed(JEPAGuidedKSampler, values)
            noted = values_of(inputs)
        report = TraceReporter(cls.hidden.unique_id)
        guided = guided_model(model, latent_image, sampling["sampler_name"], inputs, report)
        latent = stock_sample(guided, latent_image, **sampling)
        note_in_images(cls.hidden, sampling | noted, report.trace.as_json())
        return io.NodeOutput(latent, report.trace, ui={"jepa_trace": [report.trace.as_json()]})
