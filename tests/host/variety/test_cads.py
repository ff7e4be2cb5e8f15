"""Noise on the conditioning: the paper's formulas, one candidate at a time, and the host's own conditioning in a run."""

from __future__ import annotations

import math

import comfy.conds
import numpy as np
import pytest
import torch
from jepa_guidance.host.comfy.sampling import replaced_conditioning, time_left, wrap_sampler
from jepa_guidance.host.variety.cads import (
    Cads,
    annealing,
    can_carry_noise,
    noised,
    with_noised_conditioning,
)

STRONG = Cads(scale=0.5)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entry(tokens: torch.Tensor | None = None, pooled: torch.Tensor | None = None) -> dict:
    parts = {"other": comfy.conds.CONDConstant(3)}
    if tokens is not None:
        parts["c_crossattn"] = comfy.conds.CONDCrossAttn(tokens)
    if pooled is not None:
        parts["y"] = comfy.conds.CONDRegular(pooled)
    return {"model_conds": parts, "strength": 0.7}


def run_of(*positive: dict) -> dict:
    return {"positive": list(positive), "negative": [entry(drawn(1, 3, 8, seed=9))]}


def tokens_for(conds: dict, rows: list[int], **changes) -> torch.Tensor:
    how = {"step": 2, "t": 0.8, "settings": STRONG, "seed": 5} | changes
    return with_noised_conditioning(conds, rows, **how)["positive"][0]["model_conds"]["c_crossattn"].cond


@pytest.mark.parametrize(("t", "gamma"), [(1, 0), (0.9, 0), (0.75, 0.5), (0.675, 0.75), (0.6, 1), (0, 1)])
def test_annealing_is_clean_up_to_tau1_and_only_noise_from_tau2_on(t, gamma):
    assert annealing(t, 0.6, 0.9) == pytest.approx(gamma)


def test_annealing_with_equal_times_is_a_step():
    assert [annealing(t, 0.5, 0.5) for t in (0.51, 0.5, 0.49)] == [0, 1, 1]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
def test_noised_is_the_papers_formula(gamma, mix):
    y, noise, s = 2 + 3 * drawn(5, 8), drawn(5, 8, seed=1), 0.25
    a, n = y.double().numpy(), noise.double().numpy()
    hat = np.sqrt(gamma) * a + s * np.sqrt(1 - gamma) * n
    rescaled = (hat - np.mean(hat)) / np.std(hat, ddof=1) * np.std(a, ddof=1) + np.mean(a)
    expected = mix * rescaled + (1 - mix) * hat
    np.testing.assert_allclose(noised(y, gamma, s, mix, noise).numpy(), expected, rtol=2e-5, atol=2e-5)


def test_full_rescaling_keeps_mean_and_deviation():
    y = 2 + 3 * drawn(77, 32)
    changed = noised(y, 0.2, 1.0, 1.0, drawn(77, 32, seed=1))
    assert changed.mean().item() == pytest.approx(y.mean().item(), rel=1e-4)
    assert changed.std().item() == pytest.approx(y.std().item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_conditioning_keeps_its_type_and_stays_finite(dtype):
    conds = run_of(entry((40 * drawn(1, 77, 16)).to(dtype)))
    changed = tokens_for(conds, [0, 1])
    assert changed.dtype == dtype
    assert changed.isfinite().all()


@pytest.mark.parametrize("t", [0.8, 1.0])
def test_conditioning_of_zeros_stays_finite(t):
    assert not tokens_for(run_of(entry(torch.zeros(1, 3, 8))), [0], t=t).any()


def test_a_candidate_has_the_same_noise_in_any_call():
    conds = run_of(entry(drawn(1, 3, 8)))
    whole = tokens_for(conds, list(range(6)))
    assert torch.equal(whole[[1, 4, 5]], tokens_for(conds, [1, 4, 5]))
    assert torch.equal(whole, torch.cat([tokens_for(conds, [0, 1, 2, 3]), tokens_for(conds, [4, 5])]))
    assert all(torch.equal(whole[i : i + 1], tokens_for(conds, [i])) for i in range(6))


def test_noise_differs_between_candidates_steps_seeds_and_conditionings():
    same = drawn(1, 3, 8)
    conds = run_of(entry(same), entry(same))
    changed = with_noised_conditioning(conds, [0, 1], 2, 0.8, STRONG, 5)["positive"]
    first, second = (one["model_conds"]["c_crossattn"].cond for one in changed)
    others = [first[1], second[0], tokens_for(conds, [0], step=3)[0], tokens_for(conds, [0], seed=6)[0]]
    assert all(not torch.equal(first[0], other) for other in others)
    assert len({tuple(other.flatten().tolist()) for other in others}) == 4


def test_rows_of_a_batch_keep_their_own_prompts():
    rows = drawn(3, 3, 8)
    changed = tokens_for(run_of(entry(rows)), [0, 5, 7])
    alone = [tokens_for(run_of(entry(rows[i : i + 1])), [row]) for i, row in enumerate([0, 5, 7])]
    assert torch.equal(changed, torch.cat(alone))


@pytest.mark.parametrize(
    ("t", "settings"), [(0.6, STRONG), (0.0, STRONG), (1.0, Cads(scale=0.0))], ids=["tau1", "end", "off"]
)
def test_without_noise_the_very_same_conditioning_returns(t, settings):
    conds = run_of(entry(drawn(1, 3, 8)))
    assert with_noised_conditioning(conds, [0, 1], 0, t, settings, 5) is conds


def test_only_the_positive_tokens_change_and_the_given_conditioning_never():
    tokens, pooled = drawn(1, 3, 8), drawn(1, 4)
    conds = run_of(entry(tokens.clone(), pooled))
    changed = with_noised_conditioning(conds, [0, 1], 0, 0.8, STRONG, 5)
    parts = changed["positive"][0]["model_conds"]
    assert type(parts["c_crossattn"]) is comfy.conds.CONDCrossAttn
    assert parts["y"] is conds["positive"][0]["model_conds"]["y"]
    assert changed["negative"] is conds["negative"]
    assert changed["positive"][0]["strength"] == 0.7
    assert torch.equal(conds["positive"][0]["model_conds"]["c_crossattn"].cond, tokens)


def test_the_pooled_vector_carries_the_noise_of_models_without_tokens():
    conds = run_of(entry(pooled=drawn(1, 64)), entry(pooled=torch.tensor([3])), entry())
    changed = with_noised_conditioning(conds, [0, 1], 0, 0.8, STRONG, 5)["positive"]
    assert changed[0]["model_conds"]["y"].cond.shape == (2, 64)
    assert changed[1:] == conds["positive"][1:]
    assert can_carry_noise(conds)
    assert not can_carry_noise(run_of(*conds["positive"][1:]))


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state()
    tokens_for(run_of(entry(drawn(1, 3, 8))), [0, 1])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    first = tokens_for(run_of(entry(drawn(1, 3, 8))), [0])
    torch.manual_seed(2)
    assert torch.equal(first, tokens_for(run_of(entry(drawn(1, 3, 8))), [0]))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scale": -0.1}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"mix": 1.5}, "mix"),
        ({"tau1": 0.9, "tau2": 0.6}, "tau1"),
        ({"tau2": 1.5}, "tau2"),
    ],
)
def test_invalid_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Cads(**settings)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM", "V_PREDICTION_CONTINUOUS", "FLOW", "FLUX"])
def test_time_left_falls_from_1_to_0_with_the_noise(tiny, kind):
    sampling = tiny.make_model(kind).model.model_sampling
    sigmas = torch.linspace(1, 0, 9) * sampling.sigma_max.cpu()
    times = [time_left(sampling, sigma) for sigma in sigmas]
    assert times[0] == 1
    assert times[-1] == 0
    assert times == sorted(times, reverse=True)


def test_time_left_is_the_step_of_a_discrete_schedule_sigma_of_a_flow_and_the_logarithm_for_edm(tiny):
    discrete = tiny.make_model("EPS").model.model_sampling
    assert time_left(discrete, discrete.sigmas[600]) == pytest.approx(600 / 999)
    flow = tiny.make_model("FLOW").model.model_sampling
    assert time_left(flow, torch.tensor(0.4)) == pytest.approx(0.4, abs=1e-3)
    edm = tiny.make_model("EDM").model.model_sampling
    middle = math.sqrt(float(edm.sigma_min) * float(edm.sigma_max))
    assert time_left(edm, torch.tensor(middle)) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_a_run_with_a_row_left_out_gives_the_same_candidate(tiny, stock, kind):
    """The host's own sampler and conditioning: a candidate drawn among others, and drawn alone."""

    def drawn_with(rows: list[int], settings: Cads) -> torch.Tensor:
        model = tiny.make_model(kind)
        sampling = model.get_model_object("model_sampling")

        def wrapper(executor, guider, sigmas, extra_args, callback, noise, *rest, **others):
            plain = guider.predict_noise

            def predict(x, sigma, *args, **kwargs):
                step, t = int((sigmas - sigma[0]).abs().argmin()), time_left(sampling, sigma[0])

                def change(conds):
                    return with_noised_conditioning(conds, rows, step, t, settings, 5)

                with replaced_conditioning(guider, change):
                    return plain(x, sigma, *args, **kwargs)

            guider.predict_noise = predict
            noise = torch.stack([drawn(4, 8, 8, seed=row) for row in rows]).to(noise.device)
            return executor(guider, sigmas, extra_args, callback, noise, *rest, **others)

        wrap_sampler(model, "test", wrapper)
        return stock(model, tiny, latent_image={"samples": torch.zeros(len(rows), 4, 8, 8)})

    whole = drawn_with([0, 1, 2], STRONG)
    torch.testing.assert_close(drawn_with([2], STRONG), whole[2:], rtol=1e-4, atol=1e-4)
    assert (drawn_with([0, 1, 2], Cads(scale=0)) - whole).abs().max() > 1e-2
