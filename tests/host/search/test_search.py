"""A search keeps images of the stock sampler, and drops the others on the way."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import pytest
import torch
from jepa_guidance.host.guidance.refused_samplers import REFUSED
from jepa_guidance.host.scoring.along import kept_rows
from jepa_guidance.host.search.search import SearchConfig, apply_search

from jepa_core import jepa_score
from tests.host.sampler_names import others_long
from tests.host.search.conftest import CANDIDATES, COUNT, LATENT, SAMPLING

REFUSED_NAMES = {own for own, _ in REFUSED.values()}


def row_by_row(model: Any) -> Any:
    """A MODEL whose images do not depend on their batch: its network sees one at a time.

    The kernels of a processor round a row otherwise if the batch is smaller.
    """

    def one_by_one(apply: Any, arguments: dict) -> torch.Tensor:
        x, sigma, conds = arguments["input"], arguments["timestep"], arguments["c"]
        rows = range(len(x))
        own = [
            {name: part[row : row + 1] if torch.is_tensor(part) else part for name, part in conds.items()}
            for row in rows
        ]
        return torch.cat([apply(x[row : row + 1], sigma[row : row + 1], **own[row]) for row in rows])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(one_by_one)
    return patched


def batch(size: int = CANDIDATES) -> dict:
    return {"samples": torch.zeros(size, 4, 8, 8)}


@pytest.mark.parametrize(
    "sampler_name", others_long(name for name in comfy.samplers.SAMPLER_NAMES if name not in REFUSED_NAMES)
)
def test_kept_rows_are_the_stock_batchs_bit_for_bit(tiny, stock, search, sampler_name):
    model = row_by_row(tiny.model)
    sampling = {"sampler_name": sampler_name, "steps": 6}
    kept, record = search(model, sampling=sampling)
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING | sampling)
    assert len(kept["samples"]) == COUNT
    assert torch.equal(kept["samples"], drawn[kept["batch_index"]])
    assert record.rows < record.calls * CANDIDATES


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "uni_pc", "heun", "euler_cfg_pp"])
def test_one_row_at_once_gives_what_the_place_in_the_batch_gives_alone(tiny, stock, search, sampler_name):
    sampling = {"sampler_name": sampler_name, "steps": 6}
    kept, _ = search(sampling=sampling, rows_at_once=1)
    for row, place in zip(kept["samples"], kept["batch_index"], strict=True):
        alone = stock(tiny.model, tiny, latent_image=LATENT | {"batch_index": [place]}, **SAMPLING | sampling)
        assert torch.equal(row, alone[0])


def test_kept_rows_are_the_stock_batchs_up_to_rounding(tiny, stock, search):
    kept, _ = search()
    drawn = stock(tiny.model, tiny, latent_image=batch(), **SAMPLING)
    torch.testing.assert_close(kept["samples"], drawn[kept["batch_index"]], rtol=1e-4, atol=1e-4)


def test_one_candidate_is_the_stock_image(tiny, stock, search):
    kept, record = search(candidates=1, count=1)
    assert torch.equal(kept["samples"], stock(tiny.model, tiny, latent_image=LATENT, **SAMPLING))
    assert kept["batch_index"] == [0]
    assert record.rows == record.calls == SAMPLING["steps"]


def score_of(tiny: Any, latent: torch.Tensor) -> float:
    """The projected score of a latent decoded by the host, straight from the definition."""
    with torch.inference_mode():
        image = tiny.vae.decode(latent[None])
    encoder = tiny.encoder.encoder
    return jepa_score(encoder, encoder.preprocess(image), projection=encoder.embed_dim).item()


@pytest.mark.parametrize(("keep", "highest"), [("rarest", False), ("most typical", True)])
def test_without_looks_the_best_of_all_images_are_kept(tiny, stock, search, keep, highest):
    kept, record = search(looks=(), keep=keep)
    drawn = stock(tiny.model, tiny, latent_image=batch(), **SAMPLING)
    scores = [score_of(tiny, row) for row in drawn]
    order = sorted(range(CANDIDATES), key=scores.__getitem__, reverse=highest)[:COUNT]
    assert kept["batch_index"] == order
    found = [one.value for one in record.candidates]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(scores), rtol=1e-3, atol=1e-3)
    assert record.rows == CANDIDATES * SAMPLING["steps"]


def test_dropped_candidates_cost_no_denoiser_rows(tiny, search):
    """Counted where the network is called, by images."""
    seen = []

    def count(apply, arguments):
        seen.append(len(arguments["input"]) / 2)  # with the negative
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(count)
    _, record = search(model, candidates=8, count=2, looks=(0.4, 0.7))
    assert seen == [8] * 4 + [4] * 3 + [2] * 3
    assert record.rows == sum(seen)
    assert [one.step for one in record.candidates].count(3) == 4  # dropped at the first look


def test_the_least_rare_estimates_are_dropped(tiny, search):
    """At a look the clean estimates count, not the finished images."""
    estimates = []

    def listen(args):
        estimates.append(args["denoised"].clone())
        return args["denoised"]

    model = tiny.model.clone()
    model.set_model_sampler_post_cfg_function(listen)
    _, record = search(model, looks=(0.5,))
    scores = [score_of(tiny, tiny.model.model.process_latent_out(row)) for row in estimates[4]]
    rarest = sorted(range(CANDIDATES), key=scores.__getitem__)[:COUNT]
    assert sorted(one.index for one in record.kept) == sorted(rarest)


@pytest.mark.parametrize("at_once", [0, 1, 2, 4])
def test_rows_at_once_change_nothing_but_rounding(tiny, search, at_once):
    torch.testing.assert_close(
        search(rows_at_once=at_once)[0]["samples"], search()[0]["samples"], rtol=1e-4, atol=1e-4
    )


def test_out_of_memory_halves_the_rows_at_once(tiny, search):
    failures = torch.zeros(())  # a list would be put back like other state of a patch

    def small(apply, arguments):
        if len(arguments["input"]) > 3 * 2:
            failures.add_(1)
            raise torch.OutOfMemoryError("no room")
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(small)
    kept, _ = search(model)
    assert failures == 1  # the size that failed is not tried again
    torch.testing.assert_close(kept["samples"], search()[0]["samples"], rtol=1e-4, atol=1e-4)


def test_a_single_row_that_does_not_fit_is_the_hosts_error(tiny, search):
    def never(apply, arguments):
        raise torch.OutOfMemoryError("no room")

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(never)
    with pytest.raises(torch.OutOfMemoryError):
        search(model)


def test_a_conditioning_of_the_whole_batch_is_cut_to_the_rows(tiny, stock, search):
    model = row_by_row(tiny.model)
    own = [[torch.randn(CANDIDATES, 3, 8, generator=torch.Generator().manual_seed(3)), {}]]
    sampling = {"positive": own, "steps": 6}
    kept, _ = search(model, sampling=sampling)
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING | sampling)
    assert torch.equal(kept["samples"], drawn[kept["batch_index"]])


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.long), 4, 8])
def test_prompts_that_the_host_repeats_or_cuts_off_are_those_of_the_whole_batch(tiny, stock, search, count):
    model = row_by_row(tiny.model)
    own = [[torch.randn(count, 3, 8, generator=torch.Generator().manual_seed(3)), {}]]
    sampling = {"positive": own, "steps": 6}
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING | sampling)
    for at_once in (0, 1):
        kept, _ = search(model, sampling=sampling, rows_at_once=at_once)
        assert torch.equal(kept["samples"], drawn[kept["batch_index"]])


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.long), 3, 6])
def test_masks_of_a_prompt_are_those_of_the_whole_batch(tiny, stock, search, count):
    model = row_by_row(tiny.model)
    masks = (torch.randn(count, 8, 8, generator=torch.Generator().manual_seed(3)) > 0).float()
    other = [[-tiny.positive[0][0], {}]]
    own = [[tiny.positive[0][0], {"mask": masks, "mask_strength": 1.0, "set_area_to_bounds": False}], *other]
    sampling = {"positive": own, "steps": 6}
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING | sampling)
    kept, _ = search(model, sampling=sampling, rows_at_once=1)
    torch.testing.assert_close(kept["samples"], drawn[kept["batch_index"]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latent", [LATENT, {"samples": torch.randn(1, 4, 8, 8)}], ids=["empty", "image"])
def test_masks_and_images_are_kept_as_by_the_stock_sampler(tiny, stock, search, latent):
    model = row_by_row(tiny.model)
    mask = (torch.arange(8) < 4).float().expand(1, 8, 8)
    sampling = {"denoise": 0.6, "steps": 6}
    masked = latent | {"noise_mask": mask}
    kept, _ = search(model, latent=masked, sampling=sampling)
    whole = masked | {"samples": masked["samples"].repeat(CANDIDATES, 1, 1, 1)}
    drawn = stock(model, tiny, latent_image=whole, **SAMPLING | sampling)
    assert torch.equal(kept["samples"], drawn[kept["batch_index"]])


@pytest.mark.parametrize("count", [2, CANDIDATES])
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8)], ids=["masks", "masks with channels"])
def test_kept_masks_are_those_of_the_kept_places(search, count, shape):
    masks = torch.arange(count).float().view(count, *[1] * len(shape)).expand(count, *shape) / count
    latent = {"samples": torch.ones(CANDIDATES, 4, 8, 8), "noise_mask": masks}
    kept, _ = search(latent=latent)
    expected = [index % count / count for index in kept["batch_index"]]
    assert kept["noise_mask"].flatten(1)[:, 0].tolist() == pytest.approx(expected)


def test_a_mask_without_a_batch_is_kept_whole():
    latent = {"samples": torch.ones(8, 4, 8, 8), "noise_mask": torch.ones(8, 8)}
    assert kept_rows(latent, [3, 1])["noise_mask"].shape == (2, 8, 8)


def test_masks_of_the_frames_of_a_video_belong_to_every_video():
    masks = torch.arange(3.0).view(3, 1, 1).expand(3, 8, 8)
    latent = {"samples": torch.ones(4, 16, 3, 8, 8), "noise_mask": masks}
    kept = kept_rows(latent, [3, 1])["noise_mask"]
    assert kept.shape == (2, 1, 3, 8, 8)
    assert kept[..., 0, 0].flatten().tolist() == [0, 1, 2, 0, 1, 2]


def test_a_part_of_the_schedule(tiny, search):
    kept, record = search(sampling={"start_step": 2, "last_step": 8})
    assert record.steps == 6
    assert len(record.kept) == COUNT
    assert kept["samples"].isfinite().all()


def test_images_that_are_not_finite_are_dropped_and_named(tiny, search):
    def broken(args):
        args["denoised"][1:3] = math.nan
        return args["denoised"]

    model = tiny.model.clone()
    model.set_model_sampler_post_cfg_function(broken)
    kept, record = search(model, looks=(0.5,))
    assert not {1, 2} & set(kept["batch_index"])
    assert any("image(s) 1, 2 hold NaN" in notice for notice in record.notices)


def test_only_images_that_are_not_finite_are_an_error(tiny, search):
    model = tiny.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * math.nan)
    with pytest.raises(ValueError, match="every candidate holds NaN"):
        search(model)


def test_images_that_are_not_finite_do_not_count_as_good_enough(tiny, search):
    """With a quality above the floor, but the only one."""

    def broken(args):
        args["denoised"][1] = math.nan
        return args["denoised"]

    model = tiny.model.clone()
    model.set_model_sampler_post_cfg_function(broken)

    def fits(images: torch.Tensor, _: Any) -> list[float]:
        return [0.9 if not image.isfinite().all() else 0.1 for image in images]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jepa_guidance.host.search.search.prompt_fits_here", fits)
        scorer = SimpleNamespace(patcher=tiny.encoder.patcher)
        settings = {"prompt_fit": scorer, "floor_kind": "value", "floor": 0.5}
        with pytest.raises(ValueError, match=r"no image reaches the floor 0\.5; the best quality is 0\.1"):
            search(model, looks=(0.5,), **settings)


def test_a_known_quality_below_the_floor_is_never_begun(tiny, search):
    qualities = [0.1, 0.9, 0.2, 0.8, 0.7, 0.3]
    kept, record = search(qualities=qualities, floor_kind="percentile", floor=50.0)
    assert set(kept["batch_index"]) <= {1, 3, 4}
    assert all(record.candidates[place].step is None for place in (0, 2, 5))
    assert record.floor == pytest.approx(0.5)


def test_a_floor_that_nobody_reaches_names_the_best_quality(tiny, search):
    with pytest.raises(ValueError, match=r"no image reaches the floor 2; the best quality is 0\.9"):
        search(qualities=[0.9] * CANDIDATES, floor_kind="value", floor=2.0)


def test_the_models_options_are_left_alone(tiny, search):
    before = dict(tiny.model.model_options)
    search()
    assert tiny.model.model_options == before
    assert not tiny.model.wrappers


def test_an_interrupt_stops_within_one_pass_and_leaves_no_trace(tiny, search):
    import comfy.model_management as management

    calls = []

    def interrupt(apply, arguments):
        calls.append(1)
        if len(calls) == 3:
            management.interrupt_current_processing()
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(interrupt)
    with pytest.raises(management.InterruptProcessingException):
        search(model, rows_at_once=1)
    assert len(calls) == 3
    assert len(search()[1].kept) == COUNT


def test_novelty_needs_a_reference(tiny):
    with pytest.raises(ValueError, match="reference is needed"):
        apply_search(tiny.model, tiny.vae, tiny.encoder, SearchConfig(4, 2, by="novelty"))
