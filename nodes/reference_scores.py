"""JEPAReferenceScores: the scores that other images are compared with."""

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.scoring.reference import Reference
from ..host.scoring.scores import score_batches
from .input_checks import check_values, count_images, inputs_of, only
from .scoring_inputs import mode_arguments, mode_inputs, scoring_of, view_inputs
from .types import JEPAEncoder, JEPAReference


class JEPAReferenceScores(io.ComfyNode):
    """Scores images -> a reference for JEPA Score Image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAReferenceScores",
            display_name="JEPA Reference Scores",
            category="JEPA",
            description="Scores a set of ordinary images once, so that JEPA Score Image can tell how rare another image is "
            "compared with them. Takes a batch or a list of batches, of any sizes; fifty images make a good reference.",
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The images to compare with: a batch, or a list of batches."
                ),
                JEPAEncoder.Input("encoder", tooltip="The same encoder as in JEPA Score Image."),
                *mode_inputs(),
                *view_inputs(),
            ],
            outputs=[
                JEPAReference.Output(display_name="reference", tooltip="For JEPA Score Image."),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Their scores, rarest first.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, encoder, mode, top_k, fit, antialias) -> io.NodeOutput:
        # a node that takes lists gets every input as a list
        judge = only("encoder", encoder)
        settings = {
            name: only(name, values)
            for name, values in {"mode": mode, "top_k": top_k, "fit": fit, "antialias": antialias}.items()
        }
        for batch in images:
            check_values(inputs_of(JEPAReferenceScores), settings | {"encoder": judge, "images": batch})
        total = count_images(images)
        bar = ProgressBar(total * len(judge.members))
        scores = score_batches(
            images,
            judge,
            **mode_arguments(settings["mode"], settings["top_k"]),
            fit=settings["fit"],
            antialias=settings["antialias"],
            on_image=lambda: bar.update(1),
        )
        scores.sort()
        reference = Reference(scores, scoring_of(judge, **settings))
        show_text(
            cls.hidden.unique_id,
            f"{total} reference images: {scores[0]:.2f} (rarest) to {scores[-1]:.2f}, "
            f"median {scores[total // 2]:.2f}",
        )
        return io.NodeOutput(reference, scores)
