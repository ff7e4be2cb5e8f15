"""The colours of rarity maps, read by everybody, and their scale."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.drawing.palettes import PALETTES, colours, painted
from jepa_guidance.host.drawing.rarity_overlay import NOVELTIES, SCORES, draw_legend, draw_overlay, with_plain

from jepa_core.appearance import LUMA

# What dichromats see of linear colours (Machado, Oliveira and Fernandes 2009, severity 1).
BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lightness(rgb: torch.Tensor) -> torch.Tensor:
    """CIE L*, 0 to 100, of linear colours (..., 3)."""
    luminance = rgb @ torch.tensor([0.2126, 0.7152, 0.0722])
    return 116 * luminance.clamp(min=0.008856) ** (1 / 3) - 16


def linear(srgb: torch.Tensor) -> torch.Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("palette", PALETTES)
def test_colours_brighten_with_rarity_for_every_reader(palette):
    seen = linear(painted(torch.linspace(0, 1, 11), palette))
    for matrix in (torch.eye(3), *map(torch.tensor, BLINDNESS.values())):
        steps = lightness((seen @ matrix.T).clamp(0, 1)).diff()
        assert steps.min() > 2  # a just noticeable difference is about 1


@pytest.mark.parametrize("palette", PALETTES)
def test_the_overlay_goes_from_the_first_to_the_last_colour_and_leaves_the_rest_grey(palette):
    rarity = torch.linspace(1, 0, 64).expand(20, -1)
    judged = torch.ones(20, 64)
    judged[10:] = 0
    image = torch.rand(20, 64, 3)
    picture = draw_overlay(image, rarity, judged, 1.0, palette)
    torch.testing.assert_close(picture[0, 0, 0], colours(palette)[-1])
    torch.testing.assert_close(picture[0, 0, -1], colours(palette)[0])
    grey = (image * torch.tensor(LUMA)).sum(-1, keepdim=True).expand(-1, -1, 3)
    torch.testing.assert_close(picture[0, 10:], grey[10:])
    half = draw_overlay(image, rarity, judged, 0.5, palette)
    torch.testing.assert_close(half[0, :10], (0.5 * grey + 0.5 * painted(rarity, palette))[:10])


@pytest.mark.parametrize("palette", PALETTES)
def test_the_legend_says_which_colour_is_which(palette):
    (scale,) = draw_legend(512, (-10.0, 10.0), palette)
    torch.testing.assert_close(scale[0, 0], colours(palette)[0], rtol=0, atol=1 / 254)
    torch.testing.assert_close(scale[0, -1], colours(palette)[-1], rtol=0, atol=1 / 254)
    assert letters(scale) > 300


@pytest.mark.parametrize("legend", [SCORES, NOVELTIES, with_plain(SCORES)])
def test_the_scale_of_a_tiny_image_has_no_texts(legend):
    for width in (*range(1, 41), 64, 100):
        (scale,) = draw_legend(width, (-1234.0, -567.0), "heat", legend)
        assert scale.shape == (46, width, 3)
        assert bool((scale[46 // 3 :] < 0.9).any()) == (width > 40)


def letters(scale: torch.Tensor) -> int:
    """Dark pixels below the colours."""
    return int((scale[len(scale) // 3 :] < 0.4).all(-1).sum())


@pytest.mark.parametrize("legend", [SCORES, NOVELTIES, with_plain(SCORES), with_plain(NOVELTIES)])
@pytest.mark.parametrize("width", [128, 256, 512, 1024])
def test_texts_of_the_legend_do_not_touch(legend, width):
    (scale,) = draw_legend(width, (-1234.0, -567.0), "grey", legend)
    assert scale.shape[1] == width
    size = max(13, 18 * width / 512)
    (written,) = torch.where((scale[len(scale) // 3 :] < 0.6).all(-1).any(0))
    gaps = written.diff()
    # words are a quarter of the text size apart
    assert 1 <= (gaps > 0.5 * size).sum() <= 2
    assert written[0] > 2
    assert written[-1] < width - 3
    named = bool(legend.unit) and width == 1024
    assert (gaps > 0.5 * size).sum() == 2 or not named


def test_the_legend_names_the_grey_of_plain_areas():
    assert with_plain(SCORES).unit == "patch score (nats); grey: plain"
    assert with_plain(NOVELTIES).unit == "grey: plain"
