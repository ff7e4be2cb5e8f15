"""The inputs and outputs of JEPARankImages that set its sheet, and tell of all images in other forms."""

from comfy_api.latest import io

from ..host.drawing.pictures import MOST_HIGH, TEXT, rows_that_fit
from .input_checks import given

MAX_COLUMNS, SMALLEST, LARGEST = 64, 10, 64


def sheet_inputs() -> list[io.Input]:
    """How the sheet is laid out, and names for its captions."""
    return [
        io.Int.Input(
            "columns",
            default=0,
            min=0,
            max=MAX_COLUMNS,
            optional=True,
            tooltip="How many images stand side by side on the sheet. 0: as many as look well.",
        ),
        io.Int.Input(
            "caption_size",
            default=TEXT,
            min=SMALLEST,
            max=LARGEST,
            optional=True,
            tooltip="The text size on the sheet in pixels; images are 256 wide. A line that does not fit is smaller.",
        ),
        io.String.Input(
            "names",
            default="",
            optional=True,
            force_input=True,
            tooltip="The file name of each image, for the sheet and the lists: a list with one for each, or one text with a "
            "line for each.",
        ),
    ]


def list_outputs() -> list[io.Output]:
    """The images that are not kept, and what is known of all of them."""
    return [
        io.Image.Output(
            display_name="rejected_images",
            is_output_list=True,
            tooltip="The images that are not kept, in their order: one batch if all have the same size, otherwise one by "
            "one. If all are kept, nodes that use it do not run.",
        ),
        io.String.Output(
            display_name="names",
            is_output_list=True,
            tooltip="The names of the kept images; empty if none were given.",
        ),
        io.Float.Output(
            display_name="rarer_than",
            is_output_list=True,
            tooltip="The percentage of the reference than which each kept image is rarer; higher is rarer. Empty without a "
            "reference.",
        ),
        io.String.Output(
            display_name="csv",
            tooltip="All images as a table for a spreadsheet, the kept ones first: rank, index, name, kept, score or "
            "novelty, rarer_than, quality, seed.",
        ),
        io.String.Output(display_name="json", tooltip="The same as JSON, with the settings."),
    ]


def names_of(names: list | None, total: int) -> list[str]:
    """One name for each image; [] if none are linked. Raises ValueError for anything else."""
    each = given(names)
    for name in each:
        if not isinstance(name, str):
            raise ValueError(f"names must be text, got {name!r:.100}")
    if len(each) == 1 and total > 1:
        each = each[0].splitlines()
    if each and len(each) != total:
        raise ValueError(
            f"names holds {len(each)} names for {total} images; give one for each, in the images' order"
        )
    return each


def check_sheet(pictures: int, columns: int, lines: int, text: int) -> None:
    """Raise ValueError, before any work, if a sheet would be too high.

    Args:
        columns: 0 for as many as look well, which always fits. lines: of a label. text: its size, pixels.
    """
    fit = rows_that_fit(lines, text)
    if columns and -(-pictures // columns) > fit:
        raise ValueError(
            f"columns {columns} makes the sheet of {pictures} images higher than {MOST_HIGH} pixels, which other programs "
            f"do not open; set columns to {-(-pictures // fit)} or more, or to 0"
        )
