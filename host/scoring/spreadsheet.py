"""Tables as CSV for spreadsheets, with text that no spreadsheet computes."""

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how what a spreadsheet computes begins


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with a header. None is empty; a text that begins as a formula, such as a file's name, begins with ./ there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(cell) for cell in row] for row in rows)
    return text.getvalue()


def _plain(cell: object) -> object:
    return f"./{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
