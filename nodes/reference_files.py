"""JEPASaveReference and JEPALoadReference: references in models/jepa_references."""

from comfy_api.latest import io, ui

from ..host.comfy.page import show_text
from ..host.scoring.reference_files import load_named, reference_names, save_named, state_of_named
from .fingerprints import unlike_any_other
from .input_checks import check_values, inputs_of
from .reference import USES
from .search_words import search_words
from .types import JEPAReference


class JEPASaveReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPASaveReference",
            display_name="JEPA Save Reference",
            category="JEPA",
            description="Saves a reference in models/jepa_references, for JEPA Load Reference. It holds embeddings and "
            "scores, not the pictures.",
            **search_words("JEPASaveReference", "novelty, export, store"),
            inputs=[
                JEPAReference.Input("reference", tooltip="What is saved."),
                io.String.Input(
                    "filename",
                    default="reference",
                    tooltip="The name of the file: letters and digits, no folders.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: a file of the same name is replaced. Off: the new one gets a number.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name of the saved file.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reference, filename, overwrite) -> io.NodeOutput:
        values = {"reference": reference, "filename": filename, "overwrite": overwrite}
        check_values(inputs_of(JEPASaveReference), values)
        name = save_named(reference, filename, overwrite=overwrite)
        text = f"{len(reference)} images saved as {name}"
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(name, ui=ui.PreviewText(text))


class JEPALoadReference(io.ComfyNode):
    """Runs again when the file changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPALoadReference",
            display_name="JEPA Load Reference",
            category="JEPA",
            description="Loads a reference that JEPA Save Reference saved. It is good only with the encoder, image size and "
            "settings that made it.",
            **search_words("JEPALoadReference", "novelty, import, restore"),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=reference_names(),
                    tooltip="A .safetensors file in models/jepa_references.",
                )
            ],
            outputs=[JEPAReference.Output(display_name="reference", tooltip=USES)],
        )

    @classmethod
    def fingerprint_inputs(cls, file=None) -> str:
        """The file's date and size; never the same for a link, whose value the host does not know yet."""
        return state_of_named(file) if isinstance(file, str) else unlike_any_other()

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        if not isinstance(file, str):
            raise ValueError(f"file must be a name, got {file!r:.100}")
        return io.NodeOutput(load_named(file))
