"""The results: their statistics on small known cases, the ideas' derivatives, and the page that quotes them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from jepa_core import Encoder, RarityGradient, jepa_score
from research.harness.pack_api import Guide, ImageGradient
from research.judges.distances import frechet_distance
from research.results import page
from research.results.arms import ARMS, AUGMENTED, BATCHES, DOSE, FULL, GUIDED, MATCHED, METHODS, SHIPPED
from research.results.augmentation import classifier, scores
from research.results.ideas import CONTRAST, low_frequencies, normalised, normalised_contrast, slow_changes
from research.results.intervals import effect_size, jackknife, mean_and_interval
from research.results.measures import matched
from research.results.sets import SPATIAL_GROUPS, Neighbourhoods, frechet, spatial_features


def features(seed: int, count: int, width: int = 12, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=generator) @ mix + shift


# --- intervals ---------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = mean_and_interval(values)
    error = values.std(ddof=1) / 20
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-4)
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert mean_and_interval([2.0, 2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(2).normal(0, 1, 50)
    found = jackknife(lambda rows: float(values[rows].mean()), list(range(50)))
    error = values.std(ddof=1) / 50**0.5
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * error, rel=1e-3)


def test_an_effect_is_in_deviations_of_the_control():
    control = np.array([0.0, 2.0, 4.0])
    assert effect_size(np.array([2.0, 4.0]), control) == 1.5
    assert effect_size(np.ones(3), np.zeros(3)) == 0


# --- sets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(8, 6), (60, 90)])
def test_the_frechet_distance_is_that_of_the_root_of_a_matrix(n: int, m: int):
    a, b = features(1, n, shift=1.0).double(), features(2, m).double()
    covariances = [np.cov(part.numpy(), rowvar=False) for part in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(sum(covariances) - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-3)


@pytest.mark.long
def test_the_frechet_distance_is_torch_fidelitys(tmp_path: Path):
    a, b = features(1, 80, shift=0.5), features(2, 70)
    assert frechet(a, b) == pytest.approx(frechet_distance(a, b, tmp_path), rel=1e-4)


def naive_neighbourhoods(real: Tensor, made: Tensor, k: int = 5) -> dict[str, float]:
    """The definitions, one picture at a time."""

    def radius(some: Tensor, index: int) -> float:
        others = [(some[index] - other).norm().item() for j, other in enumerate(some) if j != index]
        return sorted(others)[k - 1]

    def inside(one: Tensor, some: Tensor) -> list[bool]:
        return [(one - other).norm().item() <= radius(some, j) for j, other in enumerate(some)]

    in_real = [inside(one, real) for one in made]
    in_made = [inside(one, made) for one in real]
    return {
        "precision": np.mean([any(row) for row in in_real]),
        "recall": np.mean([any(row) for row in in_made]),
        "density": np.mean([sum(row) for row in in_real]) / k,
        "coverage": np.mean(np.any(in_real, axis=0)),
    }


def test_precision_recall_density_and_coverage_are_their_definitions():
    real, made = features(3, 30, 3), features(4, 24, 3, shift=0.7)
    rows = torch.ones(24, dtype=torch.bool)
    near = Neighbourhoods(real, made)
    assert near.measures(rows) == pytest.approx(naive_neighbourhoods(real, made), abs=1e-6)
    rows[::3] = False
    assert near.measures(rows) == pytest.approx(naive_neighbourhoods(real, made[rows]), abs=1e-6)


def test_spatial_features_keep_places():
    maps = torch.zeros(1, 64, 7, 7)
    maps[0, 2:4, 3, 5] = 1
    found = spatial_features(maps).reshape(SPATIAL_GROUPS, 7, 7)
    assert found[1, 3, 5] == 1
    assert found.sum() == 1


def test_a_control_has_the_contrast_and_saturation_of_the_others():
    generator = torch.Generator().manual_seed(5)
    own = 0.5 + 0.1 * torch.randn(2, 3, 32, 32, generator=generator)
    other = (0.5 + 0.13 * (own.flip(-1) - 0.5) / 0.1).clamp(0, 1)
    found = matched(own.clamp(0, 1), other)
    assert torch.allclose(found.flatten(1).std(1), other.flatten(1).std(1), rtol=0.02)
    spans = [(some.amax(1) - some.amin(1)).mean((1, 2)) for some in (found, other)]
    assert torch.allclose(*spans, rtol=0.05)


# --- augmentation ------------------------------------------------------------------------------------------------------


def test_scores_weigh_values_alike():
    wanted = torch.tensor([0] * 8 + [1] * 2)
    found = scores(wanted, torch.tensor([0] * 8 + [0, 1]), torch.tensor([False, True, True]))
    assert found == pytest.approx(
        {"accuracy": 0.75, "f1": (16 / 17 + 2 / 3) / 2, "precision": (8 / 9 + 1) / 2, "rare_recall": 0.5}
    )


def test_the_classifier_learns_what_is_linear():
    x = features(6, 300, 6)
    values = (x[:, 0] > 0).long()
    assert (classifier(x, values, 2)(x).argmax(1) == values).float().mean() > 0.9


# --- ideas -------------------------------------------------------------------------------------------------------------


def picture(encoder: Encoder, seed: int = 0) -> Tensor:
    size = 2 * encoder.image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, size, size, 3, generator=generator, dtype=torch.float64)


def along(image: Tensor, seed: int = 1) -> Tensor:
    found = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found / found.norm()


def difference(value, image: Tensor, direction: Tensor, step: float = 1e-5) -> float:  # type: ignore[no-untyped-def]
    return (value(image + step * direction) - value(image - step * direction)) / (2 * step)


def exact(encoder: Encoder) -> ImageGradient:
    rank = encoder.embed_dim
    return ImageGradient([Guide(encoder)], RarityGradient(rank, 8, 2))


def test_normalised_images_keep_no_contrast_or_brightness():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(normalised(3 * x + 2), normalised(x))
    assert normalised(x).square().mean().sqrt().item() == pytest.approx(CONTRAST)


def test_the_gradient_of_normalised_contrast_is_the_derivative_of_that_score(encoder: Encoder):
    image, chosen = picture(encoder), normalised_contrast(exact(encoder))
    seen = chosen.guides[0].encoder

    def value(pixels: Tensor) -> float:
        return jepa_score(seen, seen.preprocess(pixels)).item()

    assert chosen is not exact(encoder)
    gradient, direction = chosen(image, 0).gradient, along(image)
    assert (gradient * direction).sum().item() == pytest.approx(difference(value, image, direction), rel=1e-3)
    plain = exact(encoder)(image, 0).gradient
    assert torch.nn.functional.cosine_similarity(plain.flatten(), gradient.flatten(), 0) < 0.999


def test_the_gradient_of_slow_changes_is_the_derivative_along_slow_changes(encoder: Encoder):
    image, chosen = picture(encoder), slow_changes(exact(encoder))

    def value(pixels: Tensor) -> float:
        return jepa_score(encoder, encoder.preprocess(pixels)).item()

    gradient, direction = chosen(image, 0).gradient, along(image)
    slow = low_frequencies(direction)
    assert (gradient * direction).sum().item() == pytest.approx(difference(value, image, slow), rel=1e-3)
    assert torch.allclose(low_frequencies(slow), slow)
    assert (slow * (direction - slow)).sum().item() == pytest.approx(0, abs=1e-9)
    assert 0.01 < slow.norm() < 0.6


def test_an_idea_leaves_the_encoder_alone(encoder: Encoder):
    before = copy.copy(encoder)
    normalised_contrast(exact(encoder))
    assert type(encoder) is type(before)


# --- the page ----------------------------------------------------------------------------------------------------------


def test_every_arm_has_batches_and_twelve_are_full():
    assert set(BATCHES) == set(ARMS)
    assert set(METHODS) | {SHIPPED} <= {arm for arm, batches in BATCHES.items() if batches >= FULL}
    assert set(AUGMENTED) <= set(ARMS)
    assert {f"novelty {strength:g}" for strength in DOSE} <= set(ARMS)
    assert set(MATCHED.values()) <= set(GUIDED)


def test_the_results_page_has_the_tables_of_the_committed_figures():
    assert page.PAGE.read_text(encoding="utf-8") == page.rewritten()
