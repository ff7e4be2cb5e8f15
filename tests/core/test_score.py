"""The JEPA score against dense singular values in float64."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from jepa_core import jepa_score, load_encoder, patch_scores
from jepa_core.jacobian import images_of_a_pass
from jepa_core.score import log_sum, random_outputs


def reference(matrix, top_k=None, eps=1e-6, embed_dim=None):
    """sum log max(s, eps), values below the numerical rank of a float32 encoder counting as eps."""
    s = torch.linalg.svdvals(matrix)
    s[s < s[0] * (embed_dim or len(matrix)) * 2.0**-23] = eps
    return s.clamp(min=eps)[:top_k].log().sum()


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_exact_score(encoder, images, dense, chunk):
    found = jepa_score(encoder, images, chunk=chunk)
    assert found.shape == (3,)
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
    expected = torch.stack([reference(dense(encoder, image)) for image in images])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert expected.std() > 1  # three images, three scores


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 0.1, 100.0])
def test_the_two_null_directions_and_all_small_values_count_as_eps(encoder, images, dense, eps):
    matrix = dense(encoder, images[0])
    s = torch.linalg.svdvals(matrix)
    assert 1e-12 < s[30] < 1e-7 < 1e-2 < s[29]  # two values of rounding noise, one above the smallest eps
    found = jepa_score(encoder, images[:1], eps=eps)
    expected = s[:30].clamp(min=eps).log().sum() + 2 * torch.tensor(eps).double().log()
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)


def test_float32_agrees_with_float64_in_spite_of_the_null_directions(save_model, images):
    folder = save_model()
    exact = jepa_score(load_encoder(folder, dtype=torch.float64, image_size=28), images, eps=1e-12)
    single = jepa_score(load_encoder(folder, image_size=28), images.float(), eps=1e-12)
    torch.testing.assert_close(single, exact, rtol=1e-5, atol=0)


def test_log_sum_by_hand():
    # floor 4 * 384 * 2^-23 = 1.83e-4: the last two count as eps
    s = torch.tensor([4.0, 1.0, 2e-4, 1e-4, 0.0], dtype=torch.float64)
    expected = sum(torch.tensor([4.0, 1.0, 2e-4, 1e-6, 1e-6]).double().log())
    torch.testing.assert_close(log_sum(s, 384, 1e-6), expected, rtol=1e-6, atol=0)
    expected = sum(torch.tensor([4.0, 1.0, 0.5, 0.5, 0.5]).double().log())
    torch.testing.assert_close(log_sum(s, 384, 0.5), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 4, 10])
def test_top_k_sums_the_largest_values(encoder, images, dense, top_k):
    found = jepa_score(encoder, images, top_k=top_k)
    expected = torch.stack([reference(dense(encoder, image), top_k) for image in images])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_top_k_of_the_whole_embedding_is_the_exact_score(encoder, images):
    exact = jepa_score(encoder, images[:1])
    torch.testing.assert_close(jepa_score(encoder, images[:1], top_k=32), exact, rtol=1e-6, atol=0)


def test_a_projected_score_is_that_of_fixed_random_outputs(encoder, images, dense):
    found = jepa_score(encoder, images, projection=7)
    outputs = random_outputs(7, 32)
    torch.testing.assert_close(outputs @ outputs.T, torch.eye(7).double(), rtol=0, atol=1e-12)
    expected = torch.stack([reference(outputs @ dense(encoder, image)) for image in images])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert torch.equal(jepa_score(encoder, images, projection=7), found)


def test_a_projection_on_the_whole_embedding_is_the_exact_score(encoder, images):
    exact = jepa_score(encoder, images)
    torch.testing.assert_close(jepa_score(encoder, images, projection=32), exact, rtol=1e-6, atol=0)


def test_projected_scores_in_half_precision_stay_close(monkeypatch, save_model, images):
    for module in ("jacobian", "precision"):
        monkeypatch.setattr(f"jepa_core.{module}.has_fast_bfloat16", lambda device: True)
    folder = save_model()
    exact = jepa_score(load_encoder(folder, dtype=torch.float64, image_size=28), images, projection=12)
    single = load_encoder(folder, image_size=28)
    half = jepa_score(single, images.float(), projection=12)
    torch.testing.assert_close(half, exact, rtol=0, atol=0.5)
    assert (half - exact).abs().max() > 1e-4  # it was in half precision
    assert exact.argsort().tolist() == half.argsort().tolist()


@pytest.mark.parametrize("together", [2, 3])
@pytest.mark.parametrize("chunk", [None, 5])
def test_images_that_share_their_passes_score_as_one_by_one(monkeypatch, encoder, images, together, chunk):
    ways = (jepa_score, partial(jepa_score, projection=7), partial(patch_scores, projection=7))
    alone = [score(encoder, images) for score in ways]
    monkeypatch.setattr("jepa_core.score.images_of_a_pass", lambda encoder, rows: together)
    seen = []
    for score, expected in zip(ways, alone, strict=True):
        found = score(encoder, images, chunk=chunk, on_pass=lambda: seen.append(1))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    groups = math.ceil(3 / together)
    assert len(seen) == groups * sum(1 + math.ceil(rows / (chunk or 16)) for rows in (32, 7, 7))


def test_as_many_images_share_a_pass_as_there_is_room_for(monkeypatch, encoder):
    assert images_of_a_pass(encoder, 32) == 1
    weight = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 4)
    # a ViT-S at 224 px
    big = SimpleNamespace(
        weight=weight, input_shape=(3, 224, 224), layer_bytes=11 << 20, activation_bytes=73 << 20
    )
    found = {}
    for memory in (1 << 29, 1 << 30, 2 << 30):
        monkeypatch.setattr("jepa_core.jacobian._memory_of_a_pass", lambda device, memory=memory: memory)
        found[memory >> 20] = [images_of_a_pass(big, rows) for rows in (48, 384)]
    assert found == {512: [1, 1], 1024: [2, 2], 2048: [5, 5]}
    assert images_of_a_pass(big, 4000) == 1  # the rows alone fill it, and it works nevertheless


def test_patch_scores_are_those_of_the_patches_own_columns(encoder, images, dense):
    found = patch_scores(encoder, images, projection=12)
    patch = encoder.model.config.patch_size
    side = encoder.image_size // patch
    assert found.shape == (3, side, side)
    for index, image in enumerate(images):
        rows = (random_outputs(12, 32) @ dense(encoder, image)).reshape(12, *image.shape)
        for row in range(side):
            for column in range(side):
                own = torch.zeros_like(rows)
                place = (
                    ...,
                    slice(row * patch, row * patch + patch),
                    slice(column * patch, column * patch + patch),
                )
                own[place] = rows[place]
                expected = reference(own.flatten(1), 12, embed_dim=32)
                torch.testing.assert_close(found[index, row, column], expected, rtol=1e-9, atol=1e-9)
    assert found.std(dim=(1, 2)).min() > 0.1  # patches differ


def test_a_patch_without_any_say_scores_the_floor(encoder, images, dense):
    """With the patch's pixels cut off from the embedding, its columns are zero."""
    patch = encoder.model.config.patch_size

    class Blind(type(encoder)):
        def forward(self, x, *, half=False):
            seen = torch.ones_like(x)
            seen[..., :patch, :patch] = 0
            return super().forward(x * seen, half=half)

    blind = copy.copy(encoder)
    blind.__class__ = Blind
    found = patch_scores(blind, images[:1], projection=12)
    torch.testing.assert_close(found[0, 0, 0], 12 * torch.tensor(1e-6).double().log(), rtol=1e-9, atol=0)
    assert found[0].flatten()[1:].min() > found[0, 0, 0] + 10


def test_a_clip_has_no_map_and_bad_numbers_are_refused(encoder, images):
    with pytest.raises(ValueError, match="projection must be 1 to 32"):
        patch_scores(encoder, images, projection=33)
    with pytest.raises(ValueError, match="NaN or infinite"):
        patch_scores(encoder, images * torch.nan)


def test_on_pass_follows_every_pass_and_can_stop(encoder, images):
    seen = []
    jepa_score(encoder, images, chunk=10, on_pass=lambda: seen.append(1))
    assert len(seen) == 3 * (1 + 4)
    seen.clear()
    jepa_score(encoder, images, projection=8, chunk=4, on_pass=lambda: seen.append(1))
    assert len(seen) == 3 * (1 + 2)

    def stop():
        raise InterruptedError

    weights = list(encoder.parameters())
    with pytest.raises(InterruptedError):
        jepa_score(encoder, images, on_pass=stop)
    assert all(a is b for a, b in zip(weights, encoder.parameters(), strict=True))


def test_inference_mode_autocast_and_a_default_device_change_no_bit(save_model, images):
    encoder = load_encoder(save_model(), image_size=28)
    x = images.float()
    expected = jepa_score(encoder, x)
    with torch.inference_mode():
        assert torch.equal(jepa_score(encoder, x.clone()), expected)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(jepa_score(encoder, x), expected)
    with torch.device("meta"):
        found = jepa_score(encoder, x)
    assert torch.equal(found, expected)


def test_a_batch_equals_its_images_one_by_one_and_no_random_state_moves(encoder, images):
    before = torch.get_rng_state()
    for top_k in (None, 5):
        together = jepa_score(encoder, images, top_k=top_k)
        alone = torch.cat([jepa_score(encoder, image[None], top_k=top_k) for image in images])
        assert torch.equal(together, alone)
    assert torch.equal(torch.get_rng_state(), before)


def test_arguments_that_do_not_fit_are_refused(encoder, images):
    for x in (images[0], images[:, :, :14], images[:, :2], images[:, :, :, 0]):
        with pytest.raises(ValueError, match="3, 28, 28"):
            jepa_score(encoder, x)
    for bad in (torch.nan, torch.inf):
        x = images.clone()
        x[2, 1, 0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            jepa_score(encoder, x)
    for top_k in (0, -1, 33):
        with pytest.raises(ValueError, match=f"32.*{top_k}"):
            jepa_score(encoder, images, top_k=top_k)
    for projection in (0, -1, 33):
        with pytest.raises(ValueError, match=f"32.*{projection}"):
            jepa_score(encoder, images, projection=projection)
    with pytest.raises(ValueError, match="exclude each other"):
        jepa_score(encoder, images, top_k=4, projection=4)
    for eps in (0.0, -1e-6, float("nan")):
        with pytest.raises(ValueError, match="eps must be positive"):
            jepa_score(encoder, images, eps=eps)
