"""Pictures that pages show."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.drawing.pictures import viewable


@pytest.mark.parametrize(
    ("size", "shown"),
    [((128, 64), (256, 128)), ((300, 200), (300, 200)), ((768, 1024), (384, 512)), ((1, 4000), (1, 512))],
)
def test_a_picture_to_look_at_keeps_its_pixels_up_to_a_size(size, shown):
    picture = torch.rand(*size, 3)
    found = viewable(picture)
    assert found.shape == (*shown, 3)
    assert size != shown or (found - picture).abs().max() <= 0.5 / 255 + 1e-6
