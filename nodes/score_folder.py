"""JEPAScoreFolder: all pictures of a folder scored, each once, and the rarest of them."""

import os
from itertools import islice
from pathlib import Path

from comfy_api.latest import io, ui

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.drawing.pictures import labelled_sheet
from ..host.options import NOVELTY, SCORE
from ..host.scoring.along import kept_pictures
from ..host.scoring.folder_scores import FolderScores, score_folder
from ..host.scoring.folder_table import (
    Line,
    as_csv,
    as_json,
    lines_of,
    rarest_first,
    rarest_pictures,
    rarity_value,
)
from ..host.scoring.modes import how_beside, how_of
from ..host.scoring.picture_folder import (
    INPUT,
    OUTPUT,
    folder_of,
    newest_files,
    no_picture,
    root_of,
    skipped_text,
    state_of,
)
from ..host.scoring.ranked import shortened
from ..host.scoring.reference import check_comparable, seen_as, view_of
from ..jepa_core.folders.listing import text_of_path
from ..jepa_core.reference import NO_SCORE
from .fingerprints import unlike_any_other
from .input_checks import check_values, inputs_of
from .reference import REFERENCE_ENCODER, USES
from .scoring_inputs import reference_inputs
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPAScoreFolder(io.ComfyNode):
    """Pictures of a folder -> the rarest, all scores as text, and a reference. Runs again when the pictures change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAScoreFolder",
            display_name="JEPA Score Folder",
            category="JEPA",
            description="Scores all pictures in a folder, such as your renders or a data set, and gives the rarest. Scores "
            "are kept, so that the next run scores only new pictures. Files that cannot be read are named with the reason.",
            **search_words(
                "JEPAScoreFolder",
                "rarity, novelty, unusual, outliers, gallery, my pictures, data set, dataset, curate, duplicates, "
                "too similar, batch, csv",
            ),
            inputs=_inputs(),
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder=None, subfolder=None, with_subfolders=None, most_files=None, **_
    ) -> str:
        """What the pictures are; never the same for links, whose values the host does not know yet."""
        values = {"folder": folder, "subfolder": subfolder}
        values |= {"with_subfolders": with_subfolders, "most_files": most_files}
        try:
            check_values(inputs_of(JEPAScoreFolder), values)
            files = newest_files(folder_of(folder, subfolder), deep=bool(with_subfolders))
        except ValueError:
            return unlike_any_other()
        return state_of(dict(islice(files.items(), most_files)))

    @classmethod
    def execute(
        cls,
        folder,
        subfolder,
        with_subfolders,
        count,
        encoder,
        mode,
        top_k,
        fit,
        antialias,
        by,
        most_files,
        reference=None,
    ) -> io.NodeOutput:
        settings = {"mode": mode, "top_k": top_k, "fit": fit, "antialias": antialias}
        values = {
            "folder": folder,
            "subfolder": subfolder,
            "with_subfolders": with_subfolders,
            "count": count,
        }
        values |= {"encoder": encoder, **settings, "by": by, "most_files": most_files}
        if reference is not None:
            values["reference"] = reference
        check_values(inputs_of(JEPAScoreFolder), values)
        view = view_of(how_beside(reference, fit=fit, antialias=antialias))
        if reference is not None:
            check_comparable(reference, encoder, seen_as(**view))
        if by == SCORE and mode == NO_SCORE:
            raise ValueError(f"by {SCORE} needs scores; choose another mode than {NO_SCORE}, or by {NOVELTY}")
        place = folder_of(folder, subfolder)
        files = sorted(islice(newest_files(place, deep=bool(with_subfolders)), most_files))
        names = [text_of_path(Path(os.path.relpath(file, root_of(folder))).as_posix()) for file in files]
        if not files:
            raise no_picture(place, {})
        bar = ProgressBar(len(files) * len(encoder.members))
        how = how_of(mode, top_k, **view)
        found = score_folder(files, encoder, how, on_file=lambda: bar.update(1))
        skipped = {names[at]: error for at, error in found.errors.items()}
        if found.reference is None:
            raise no_picture(place, skipped)
        lines = lines_of(found, names, encoder, by, reference)
        order = rarest_first(lines, by)
        places, pictures = rarest_pictures(order, lines, files, count)
        sheet = labelled_sheet(pictures, [label(rank, lines[at], by) for rank, at in enumerate(places, 1)])
        text = report(found, [rarity_value(lines[at], by) for at in order], by)
        if skipped:
            text += f"\nskipped: {skipped_text(skipped)}"
        show_text(cls.hidden.unique_id, text)
        every = [lines[at] for at in (*order, *sorted(found.errors))]
        about = {"encoder": encoder.name, **how, "by": by}
        return io.NodeOutput(
            kept_pictures([picture[None] for picture in pictures], range(len(pictures))),
            [lines[at].file for at in places],
            [rarity_value(lines[at], by) for at in places],
            as_csv(every),
            as_json(every, about),
            found.reference,
            text,
            ui=ui.PreviewImage(sheet, cls=cls),
        )


def _inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "folder",
            options=[OUTPUT, INPUT],
            default=OUTPUT,
            tooltip="ComfyUI's own folder that holds the pictures. No other folder is read.",
        ),
        io.String.Input("subfolder", default="", tooltip="A folder inside it; empty for the folder itself."),
        io.Boolean.Input(
            "with_subfolders",
            default=True,
            tooltip="Also scores the pictures in folders further inside, but not in hidden or linked ones.",
        ),
        io.Int.Input(
            "count",
            default=9,
            min=1,
            max=1000,
            tooltip="How many of the rarest are given as images, at most.",
        ),
        JEPAEncoder.Input("encoder", tooltip=f"Scores the pictures. {REFERENCE_ENCODER}"),
        *reference_inputs(beside=True),
        io.Combo.Input(
            "by",
            options=[SCORE, NOVELTY],
            default=SCORE,
            tooltip=f"What makes a picture rare. {SCORE}: the JEPA score, lower is rarer. {NOVELTY}: how far it is from its "
            "nearest in the reference, or without one from its nearest in the folder; higher is rarer.",
        ),
        io.Int.Input(
            "most_files",
            default=10_000,
            min=1,
            max=1_000_000,
            tooltip="How many files, at most: the newest ones. PNG, JPEG, WebP, BMP, TIFF and GIF.",
        ),
        JEPAReference.Input(
            "reference",
            optional=True,
            tooltip="What counts as usual, such as your own work. Adds to each picture its novelty beside it. From JEPA "
            "Reference and its relatives, made with the same encoder.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            display_name="images",
            is_output_list=True,
            tooltip="The rarest pictures, the rarest first: one batch if all have the same size, otherwise one by one. Of "
            "files with the same content only one.",
        ),
        io.String.Output(
            display_name="files",
            is_output_list=True,
            tooltip="Their files, as paths inside the output or input folder.",
        ),
        io.Float.Output(
            display_name="scores",
            is_output_list=True,
            tooltip="Their scores; lower is rarer. By novelty: their novelties; higher is rarer.",
        ),
        io.String.Output(
            display_name="csv",
            tooltip="All files as CSV, the rarest first: file, score, novelty, more_novel_than, width, "
            "height, bytes, error, hash.",
        ),
        io.String.Output(display_name="json", tooltip="The same as JSON, with the settings."),
        JEPAReference.Output(display_name="reference", tooltip=f"All pictures that were scored. {USES}"),
        io.String.Output(
            display_name="text",
            tooltip="How many pictures were scored, how many of them now, and which files were skipped and why.",
        ),
    ]


def report(found: FolderScores, values: list[float], by: str) -> str:
    """Lines about the folder, for the page. `values` are the scores or novelties, the rarest first."""
    count = len(values)
    text = (
        f"{count} picture{'s' * (count > 1)}, {found.new} scored now\n"
        f"{by} {values[0]:.2f} (rarest) to {values[-1]:.2f}, median {values[count // 2]:.2f}"
    )
    return f"{text}\n{found.not_kept}" if found.not_kept else text


def label(rank: int, line: Line, by: str) -> str:
    """What the sheet says below a picture."""
    lines = [f"{rank}. {shortened(line.file.rpartition('/')[2])}", f"{rarity_value(line, by):.2f}"]
    if line.more_novel_than is not None:
        lines.append(f"more novel than {line.more_novel_than:.0f} %")
    return "\n".join(lines)
