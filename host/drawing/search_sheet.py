"""The candidates of a search as a sheet: kept ones first, dropped ones greyed."""

import torch
from torch import Tensor

from ..search.record import Candidate, SearchRecord
from .pictures import SIDE, labelled_sheet

_PALE = 0.6  # share of white over a dropped candidate


def search_sheet(record: SearchRecord) -> Tensor:
    """All candidates of a finished search with what they are worth, (1, H, W, 3) in [0, 1].

    The kept ones come first, then the others, from those that were dropped last to those that were dropped first.
    """
    kept = [one.index for one in record.kept]
    rest = [one for one in record.candidates if one.index not in kept]
    rest.sort(key=lambda one: (-(one.step or 0), one.value))
    shown = [*record.kept, *rest]
    pictures = [_picture(one, pale=one.index not in kept) for one in shown]
    return labelled_sheet(pictures, [_label(one, record) for one in shown])


def _picture(one: Candidate, *, pale: bool) -> Tensor:
    if one.picture is None:
        return torch.ones(SIDE, SIDE, 3)
    picture = one.picture.nan_to_num(0)
    if not pale:
        return picture
    grey = picture.mean(-1, keepdim=True).expand_as(picture)
    return _PALE + (1 - _PALE) * grey


def _label(one: Candidate, record: SearchRecord) -> str:
    lines = [f"image {one.index}", f"{one.value:.2f}" if one.step is not None else "not seen"]
    if one.quality == one.quality:  # not NaN
        lines.append(f"quality {one.quality:.3g}")
    lines.append("kept" if one in record.kept else _fate(one, record))
    return "\n".join(lines)


def _fate(one: Candidate, record: SearchRecord) -> str:
    if one.step is None:
        return "dropped at the start"
    return "dropped at the end" if one.step == record.steps else f"dropped at step {one.step + 1}"
