"""Novelty in every form against plain loops, and its gradient against finite differences, for every architecture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_core import Encoder, load_encoder, novelty_gradient
from jepa_core.architectures import ARCHITECTURES
from jepa_core.novelty import (
    FORMS,
    NEIGHBOURS,
    SHRINKAGE,
    KernelDensity,
    Nearest,
    distances_within,
    embed,
    unit_length,
)
from tests.core.conftest import SMALL

KINDS = list(ARCHITECTURES)
SEES_MOTION = [kind for kind, row in ARCHITECTURES.items() if row.embed_clip is not None]
NEIGHBOUR_FORMS = [form for form in FORMS if form not in ("Mahalanobis", "kernel density")]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the forms, with plain loops ----------------------------------------------------------------------------------


def plain_whitened(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Rows in the principal axes of the points, each divided by the spread along it."""
    centre = points.mean(0)
    covariance = (points - centre).T @ (points - centre) / len(points)
    variances, axes = np.linalg.eigh(covariance)
    return (rows - centre) @ axes / np.sqrt(variances + SHRINKAGE * variances.mean())


def plain_unit(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_identity(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    return rows


def sorted_distances(row: np.ndarray, points: np.ndarray, left_out: int | None = None) -> list[float]:
    return sorted(float(np.linalg.norm(row - point)) for i, point in enumerate(points) if i != left_out)


def plain_distance(form: str, z: np.ndarray, points: np.ndarray, skip: int | None = None) -> float:
    """The novelty of one embedding z (d,) from points (N, d), written as the form is explained."""
    if form == "Mahalanobis":
        return float(np.linalg.norm(plain_whitened(z[None], points)[0]))
    if form == "kernel density":
        width = np.mean(
            [sorted_distances(point, points)[min(NEIGHBOURS, len(points) - 1)] for point in points]
        )
        kernels = [
            math.exp(-(distance**2) / (2 * width**2)) for distance in sorted_distances(z, points, skip)
        ]
        return -math.log(sum(kernels))
    soft = form.startswith("soft ")
    mapping = {"L2": plain_identity, "cosine": plain_unit, "whitened": plain_whitened}[
        form.removeprefix("soft ")
    ]
    row, places = mapping(z[None], points)[0], mapping(points, points)
    near = sorted_distances(row, places, skip)
    if not soft:
        return float(np.mean(near[:NEIGHBOURS]))
    spacing = np.mean([sorted_distances(place, places, i)[0] for i, place in enumerate(places)])
    heat = 0.1 * spacing
    return float(-heat * np.log(sum(math.exp(-one / heat) for one in near[: 8 * NEIGHBOURS])))


@pytest.mark.parametrize("count", [7, 60])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_what_it_says(form, count):
    points, z = drawn(count, 6), drawn(4, 6, seed=1)
    found = FORMS[form](points)(z)
    assert found.shape == (4,)
    expected = [plain_distance(form, row, points.numpy()) for row in z.numpy()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_point_that_is_skipped_does_not_count(form):
    """Except for forms that look only at the cloud as a whole."""
    points = drawn(20, 6)
    chosen = torch.tensor([3, 0, 19])
    found = FORMS[form](points)(points[chosen], chosen)
    expected = [plain_distance(form, points[i].numpy(), points.numpy(), i) for i in chosen.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_the_derivative_of_a_form_is_the_finite_difference(form):
    distance, z = FORMS[form](drawn(50, 6)), drawn(3, 6, seed=1)
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(leaf).sum(), leaf)
    step = 1e-6
    for seed in (2, 3, 4):
        along = drawn(3, 6, seed=seed)
        slopes = (distance(z + step * along) - distance(z - step * along)) / (2 * step)
        torch.testing.assert_close((gradient * along).sum(1), slopes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_points_does_not_matter(form):
    points, z = drawn(30, 6), drawn(3, 6, seed=1)
    shuffled = points[torch.randperm(30, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(FORMS[form](points)(z), FORMS[form](shuffled)(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_fewer_points_than_neighbours_all_count(form, count):
    points, z = drawn(count, 6), drawn(2, 6, seed=1)
    leaf = z.clone().requires_grad_()
    found = FORMS[form](points)(leaf)
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert gradient.isfinite().all()
    if form == "L2":
        torch.testing.assert_close(found.detach(), torch.cdist(z, points).mean(1))


@pytest.mark.parametrize("form", FORMS)
def test_all_points_alike_and_an_embedding_exactly_on_them(form):
    points = drawn(1, 6).expand(9, 6).clone()
    leaf = torch.cat([points[:1], drawn(1, 6, seed=1)]).requires_grad_()
    found = FORMS[form](points)(leaf)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    assert found[0] < found[1]


@pytest.mark.parametrize("form", FORMS)
def test_an_embedding_exactly_on_a_point_has_a_finite_gradient(form):
    points = drawn(20, 6)
    leaf = points[4:6].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(FORMS[form](points)(leaf).sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_nan_in_gives_nan_out_for_that_embedding_alone(form):
    distance, z = FORMS[form](drawn(20, 6)), drawn(3, 6, seed=1)
    broken = z.clone()
    broken[1, 2] = torch.nan
    leaf = broken.requires_grad_()
    found = distance(leaf)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[::2].detach(), distance(z)[::2])
    assert gradient[1].isnan().any()
    assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("form", NEIGHBOUR_FORMS)
def test_a_scale_of_the_embeddings_does_not_matter_where_the_form_says_so(form):
    points, z = drawn(30, 6), drawn(3, 6, seed=1)
    small, large = FORMS[form](points)(z), FORMS[form](7 * points)(7 * z)
    factor = 7.0 if form.endswith("L2") else 1.0
    torch.testing.assert_close(large, factor * small, rtol=1e-9, atol=1e-9)


def test_embeddings_decide_the_dtype():
    distance = Nearest(drawn(9, 6).float())
    assert distance(drawn(2, 6)).dtype == torch.float64
    assert distance(drawn(2, 6).float()).dtype == torch.float32


def test_unit_length_leaves_a_zero_embedding_alone():
    assert torch.equal(unit_length(torch.zeros(1, 4)), torch.zeros(1, 4))


# --- among themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_distances_within_are_those_of_each_to_all_others(form):
    points = drawn(23, 6)
    expected = sorted(plain_distance(form, points[i].numpy(), points.numpy(), i) for i in range(23))
    found = distances_within(points, FORMS[form]).sort().values
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)


def test_of_many_points_some_take_part_and_all_are_compared_with():
    points = drawn(700, 3)
    everyone = distances_within(points, Nearest)
    some = distances_within(points, Nearest, count=50)
    assert (len(everyone), len(some)) == (700, 50)
    assert all(torch.isclose(everyone, one, rtol=1e-12, atol=0).any() for one in some)
    assert abs(some.mean() - everyone.mean()) < 0.1 * everyone.mean()


def test_a_single_point_has_no_distance_to_others():
    assert distances_within(drawn(1, 6), Nearest).shape == (0,)


# --- the gradient at an image -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders(save_model) -> dict[str, Encoder]:
    """In float64, of images of two by two patches."""
    return {
        kind: load_encoder(
            save_model(kind),
            dtype=torch.float64,
            image_size=2 * int(SMALL[kind]["patch_size"]),  # type: ignore[call-overload]
        )
        for kind in KINDS
    }


def points_near(encoder: Encoder, count: int = 12) -> Tensor:
    """The embeddings of random images."""
    return embed(encoder, drawn(count, *encoder.input_shape, seed=11))


def check_gradient(encoder: Encoder, x: Tensor, distance: Callable[[Tensor], Tensor]) -> None:
    found = novelty_gradient(encoder, x, distance)
    assert found.value.shape == (len(x),)
    assert found.grad.shape == x.shape
    assert not found.value.requires_grad
    torch.testing.assert_close(found.value, distance(embed(encoder, x)), rtol=1e-9, atol=0)
    step = 1e-5
    for seed in (5, 6):
        along = drawn(*x.shape, seed=seed)
        ahead, behind = (distance(embed(encoder, x + sign * step * along)) for sign in (1, -1))
        slopes = (ahead - behind) / (2 * step)
        products = (found.grad * along).flatten(1).sum(1)
        torch.testing.assert_close(products, slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_every_architecture_is_the_finite_difference(encoders, kind):
    encoder = encoders[kind]
    check_gradient(encoder, drawn(2, *encoder.input_shape, seed=3), Nearest(points_near(encoder)))


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_every_form_is_the_finite_difference(encoder, images, form):
    check_gradient(encoder, images, FORMS[form](points_near(encoder, 60)))


@pytest.mark.parametrize("kind", SEES_MOTION)
def test_the_gradient_of_a_clip_is_the_finite_difference(encoders, kind):
    clips = encoders[kind].of_clips(4)
    check_gradient(clips, drawn(2, *clips.input_shape, seed=3), Nearest(points_near(clips)))


def test_an_image_that_is_itself_a_point_has_a_finite_gradient(encoder, images):
    found = novelty_gradient(encoder, images, Nearest(embed(encoder, images), k=1))
    assert found.value.abs().max() < 1e-6
    assert found.grad.isfinite().all()


def test_an_image_that_is_not_finite_gives_nan_and_spares_the_others(encoder, images):
    x = images.clone()
    x[1, 0, 5, 5] = torch.nan
    distance = Nearest(points_near(encoder))
    found, alone = novelty_gradient(encoder, x, distance), novelty_gradient(encoder, images[2:], distance)
    assert found.value[1].isnan()
    assert found.grad[1].isnan().all()
    torch.testing.assert_close(found.grad[2], alone.grad[0], rtol=1e-9, atol=1e-12)
    assert found.grad[0].isfinite().all()


def test_float32_agrees_with_float64(save_model, images):
    folder = save_model()
    exact, single = (
        load_encoder(folder, dtype=dtype, image_size=28) for dtype in (torch.float64, torch.float32)
    )
    points = points_near(exact)
    expected = novelty_gradient(exact, images, Nearest(points))
    found = novelty_gradient(single, images.float(), Nearest(points.float()))
    assert found.grad.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), expected.value, rtol=1e-4, atol=1e-4)
    cosine = torch.cosine_similarity(found.grad.double().flatten(1), expected.grad.flatten(1))
    assert cosine.min() > 0.9999


@pytest.mark.parametrize("form", FORMS)
def test_inference_mode_changes_nothing(save_model, images, form):
    """The host's nodes run under it: encoder, reference and distance are made there and used there."""
    encoder = load_encoder(save_model(), dtype=torch.float64, image_size=28)
    points = points_near(encoder, 20)
    expected = novelty_gradient(encoder, images, FORMS[form](points))
    with torch.inference_mode():
        distance = FORMS[form](points.clone())
        found = novelty_gradient(encoder, images.clone(), distance)
        assert torch.is_inference_mode_enabled()
        within = distances_within(points.clone(), FORMS[form])
    assert torch.equal(found.grad, expected.grad)
    assert torch.equal(within, distances_within(points, FORMS[form]))
    assert torch.equal(novelty_gradient(encoder, images, distance).grad, expected.grad)


def test_autocast_changes_no_bit(save_model, images):
    encoder = load_encoder(save_model(), image_size=28)
    points = points_near(encoder)
    expected = novelty_gradient(encoder, images.float(), Nearest(points))
    with torch.autocast("cpu", torch.bfloat16):
        found = novelty_gradient(encoder, images.float(), Nearest(points))
    assert torch.equal(found.grad, expected.grad)
    assert torch.equal(found.value, expected.value)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2])
def test_on_pass_follows_the_forward_and_the_backward_pass_and_can_stop(encoder, images, after):
    passes: list[int] = []

    def stop() -> None:
        passes.append(1)
        if len(passes) == after:
            raise Stop

    distance = Nearest(points_near(encoder))
    attention = encoder.model.config._attn_implementation
    with pytest.raises(Stop):
        novelty_gradient(encoder, images, distance, stop)
    assert encoder.model.config._attn_implementation == attention
    passes.clear()
    novelty_gradient(encoder, images, distance, lambda: passes.append(1))
    assert len(passes) == 2


def test_a_search_among_many_points_takes_little():
    points = torch.randn(100_000, 384, generator=torch.Generator().manual_seed(0))
    distance, z = Nearest(points), points[:1] + 0.1
    distance(z)
    took = []
    for _ in range(5):
        before = time.process_time()
        distance(z)
        took.append(time.process_time() - before)
    assert min(took) < 0.2


def test_the_width_of_a_density_is_that_of_the_points():
    points = drawn(40, 6)
    assert KernelDensity(3 * points).width == pytest.approx(3 * KernelDensity(points).width)


# --- which encoder ------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_weights(save_model):
    folder = save_model()
    first, again = load_encoder(folder, image_size=28), load_encoder(folder, image_size=28)
    exact = load_encoder(folder, dtype=torch.float64, image_size=28)
    assert first.fingerprint == again.fingerprint == exact.fingerprint == first.at_size(14).fingerprint
    assert load_encoder(save_model("ijepa"), image_size=16).fingerprint != first.fingerprint


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_fingerprint_tells_a_fine_tuned_version(save_model, dimensions):
    """A merged LoRA changes matrices alone."""
    folder = save_model()
    first, tuned = load_encoder(folder, image_size=28), load_encoder(folder, image_size=28)
    weight = next(weight for weight in tuned.model.parameters() if weight.ndim == dimensions)
    with torch.no_grad():
        weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert first.fingerprint != tuned.fingerprint
