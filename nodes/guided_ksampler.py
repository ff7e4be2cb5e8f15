"""JEPAGuidedKSampler: the stock KSampler plus guidance."""

from comfy_api.latest import io

from ..host.comfy.sampling import stock_sample
from ..host.guidance.report import TraceReporter, note_in_images
from .guidance_inputs import guides_nothing
from .guided_sampling import SAMPLING, guided_model, guided_sampling_inputs, sampling_message
from .input_checks import check_values, inputs_of
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
            inputs=guided_sampling_inputs(),
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                JEPATrace.Output(
                    display_name="trace",
                    tooltip="What guidance did at each step: sigma, score and novelty under guides and judge, what the "
                    "target left of the strength, the gradient norm and the size of the shift.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(
        cls,
        sampler_name: str | None = None,
        strength: float | None = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
        cfg: float | None = None,
        denoise: float | None = None,
    ) -> bool | str:
        return sampling_message(sampler_name, strength, start_percent, end_percent, cfg, denoise) or True

    @classmethod
    def execute(cls, model, latent_image, **inputs) -> io.NodeOutput:
        sampling = {name: inputs.pop(name) for name in SAMPLING}
        if not guides_nothing(inputs):
            values = {"model": model, "latent_image": latent_image, **sampling, **inputs}
            # the stock sampler takes any seed through a link
            check_values(
                inputs_of(JEPAGuidedKSampler), {name: one for name, one in values.items() if name != "seed"}
            )
        report = TraceReporter(cls.hidden.unique_id)
        guided = guided_model(model, latent_image, inputs, report)
        latent = stock_sample(guided, latent_image, **sampling)
        note_in_images(
            cls.hidden.extra_pnginfo, cls.hidden.unique_id, sampling | inputs, report.trace.as_json()
        )
        return io.NodeOutput(latent, report.trace, ui={"jepa_trace": [report.trace.as_json()]})
