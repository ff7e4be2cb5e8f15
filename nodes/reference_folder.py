"""JEPAReferenceFolder: what counts as usual, from the pictures of a folder."""

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.scoring.modes import how_of
from ..host.scoring.picture_folder import (
    INPUT,
    OUTPUT,
    FolderPictures,
    folder_of,
    newest_files,
    skipped_text,
    state_of,
)
from ..host.scoring.reference import make_reference, reference_scores
from .fingerprints import unlike_any_other
from .input_checks import check_values, inputs_of
from .reference import REFERENCE_ENCODER, USES, summary
from .scoring_inputs import reference_inputs
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPAReferenceFolder(io.ComfyNode):
    """The newest pictures of a folder -> a reference. Runs again when the folder's pictures change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAReferenceFolder",
            display_name="JEPA Reference from Folder",
            category="JEPA",
            description="Makes a reference from the newest pictures in a folder, such as your last hundred renders or a "
            "data set: what is rare is then what is unlike them. Files that cannot be read are skipped and named.",
            **search_words(
                "JEPAReferenceFolder",
                "novelty, outliers, my pictures, gallery, data set, dataset, batch, unlike",
            ),
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[OUTPUT, INPUT],
                    default=OUTPUT,
                    tooltip="ComfyUI's own folder that holds the pictures. No other folder is read.",
                ),
                io.String.Input(
                    "subfolder",
                    default="",
                    tooltip="A folder inside it; empty for the folder itself.",
                ),
                io.Int.Input(
                    "count",
                    default=100,
                    min=1,
                    max=100_000,
                    tooltip="How many pictures, at most: the newest ones. PNG, JPEG, WebP, BMP, TIFF and GIF.",
                ),
                JEPAEncoder.Input("encoder", tooltip=REFERENCE_ENCODER),
                *reference_inputs(),
                io.Boolean.Input(
                    "with_subfolders",
                    default=False,
                    tooltip="Also reads the pictures in folders further inside, but not in hidden or linked ones.",
                ),
            ],
            outputs=[
                JEPAReference.Output(display_name="reference", tooltip=USES),
                io.String.Output(
                    display_name="text",
                    tooltip="How many pictures were read, and which files were skipped and why.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder=None, subfolder=None, with_subfolders=None, **_) -> str:
        """What the pictures are; never the same for links, whose values the host does not know yet."""
        values = {"folder": folder, "subfolder": subfolder, "with_subfolders": with_subfolders}
        try:
            check_values(inputs_of(JEPAReferenceFolder), values)
            return state_of(newest_files(folder_of(folder, subfolder), deep=bool(with_subfolders)))
        except ValueError:
            return unlike_any_other()

    @classmethod
    def execute(
        cls, folder, subfolder, count, encoder, mode, top_k, fit, antialias, with_subfolders
    ) -> io.NodeOutput:
        settings = {"mode": mode, "top_k": top_k, "fit": fit, "antialias": antialias}
        values = {"folder": folder, "subfolder": subfolder, "with_subfolders": with_subfolders}
        values |= {"count": count, "encoder": encoder, **settings}
        check_values(inputs_of(JEPAReferenceFolder), values)
        pictures = FolderPictures(folder_of(folder, subfolder), count, deep=bool(with_subfolders))
        bar = ProgressBar(min(count, len(pictures.files)) * len(encoder.members))
        reference = make_reference(
            pictures,
            encoder,
            how_of(**settings),
            on_image=lambda: bar.update(1),
        )
        text = summary(reference, reference_scores(reference, encoder))
        if pictures.skipped:
            text += f"\nskipped: {skipped_text(pictures.skipped)}"
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(reference, text)
