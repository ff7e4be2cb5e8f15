"""Every sampler of the host, guided, compared with the same sampler with the shift written into its source."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from jepa_guidance.host.gradient.image_gradient import ScoreGradient
from jepa_guidance.host.guidance.guided_model import SamplerPlan
from jepa_guidance.host.guidance.refused_samplers import sampler_refusal
from jepa_guidance.host.guidance.sampler_probe import probe_sampler
from jepa_guidance.host.guidance.schedule import Schedule

from jepa_core import RarityGradient
from tests.combinations import covering
from tests.host.guide import guide_model
from tests.host.sampler_names import OTHERS, WAYS
from tests.host.shifted_samplers import Shift, largest_entry_shift, shifted

# The samplers of current hosts. Those of later hosts are sorted by the result of the dry run.
REFUSED = {"dpm_adaptive"}
HANDLED = {"uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece"}
EXACT = {
    *(
        "euler",
        "euler_cfg_pp",
        "euler_ancestral",
        "euler_ancestral_cfg_pp",
        "heun",
        "heunpp2",
        "exp_heun_2_x0",
    ),
    *("exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpmpp_2s_ancestral"),
    *(
        "dpmpp_2s_ancestral_cfg_pp",
        "dpmpp_sde",
        "dpmpp_sde_gpu",
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "dpmpp_2m_sde",
    ),
    *(
        "dpmpp_2m_sde_gpu",
        "dpmpp_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu",
        "dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu",
        "ddpm",
    ),
    *("lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *(
        "res_multistep_ancestral_cfg_pp",
        "gradient_estimation",
        "gradient_estimation_cfg_pp",
        "er_sde",
        "seeds_2",
    ),
    *("seeds_3", "ddim"),
}
SAMPLERS = comfy.samplers.SAMPLER_NAMES
SCHEDULERS = comfy.samplers.SCHEDULER_NAMES
STEPS = 6
SIGMAS = torch.tensor([14.0, 7.0, 3.0, 1.0, 0.0])


def covering_samplers(kinds: Sequence[str]) -> list:
    """Samplers with kinds of models; marked long but for a few that hold each kind and each sampler of WAYS."""
    others = itertools.product(OTHERS, kinds)
    return [*covering(sorted(WAYS), kinds), *(pytest.param(*pair, marks=pytest.mark.long) for pair in others)]


def inner_model(tiny: Any) -> Any:
    """The attributes that samplers look up on the model."""
    inner: Any = type("Inner", (), {})()
    inner.model_sampling = tiny.model.model.model_sampling
    inner.model_patcher = tiny.model
    inner.inner_model = inner
    outer: Any = type("Model", (), {})()
    outer.inner_model = inner
    return outer


def probe(sampler: Any, sigmas: torch.Tensor, options: dict, model: Any) -> SamplerPlan:
    """Probe a sampler, or a sampler function, for a latent of four channels."""
    sampler = sampler if isinstance(sampler, comfy.samplers.KSAMPLER) else comfy.samplers.KSAMPLER(sampler)
    return probe_sampler(sampler, sigmas, options, model, (2, 4, 8, 8))


def verdict(tiny: Any, name: str) -> str:
    """The result of the dry run of a sampler of the host: exact, handled or refused."""
    sampler = comfy.samplers.sampler_object(name)
    try:
        found = probe(sampler, SIGMAS, sampler.extra_options, inner_model(tiny))
    except ValueError:
        return "refused"
    return "exact" if found.carry is None else "handled"


def waves(x: torch.Tensor) -> torch.Tensor:
    """A smooth substitute for the gradient, a function of x alone."""
    return torch.sin(3 * x) + 0.1 * x


def wave_gradient(denoise: Any, x: torch.Tensor, sigma: torch.Tensor, base_model: Any) -> ScoreGradient:
    return ScoreGradient(torch.zeros(len(x)), waves(x))


def guided_and_expected(
    tiny: Any,
    stock: Callable[..., torch.Tensor],
    sampler: str,
    scheduler: str,
    kind: str = "EPS",
    reference: Callable[[Shift], AbstractContextManager] = shifted,
    end_percent: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The images of the guided, the shifted and the stock sampler; each (2, 4, 8, 8).

    Args:
        reference: a context within which the sampler shifts its state.
    """
    model = tiny.make_model(kind)
    settings = {"sampler_name": sampler, "scheduler": scheduler, "steps": STEPS}
    trace: list[Any] = []
    patched = guide_model(
        model,
        tiny.vae,
        tiny.encoder,
        Schedule(strength=0.7, start_percent=0.0, end_percent=end_percent),
        RarityGradient(k=3),
        gradient=wave_gradient,
        report=trace.append,
    )
    guided = stock(patched, tiny, **settings)
    assert [step.step for step in trace[-1].steps] == list(range(trace[-1].total))
    steps = [step.step for step in trace[-1].guided_steps]
    assert len(steps) == (1 if end_percent < 1 else trace[-1].total)
    eta = 0.7 * min(1, 3 / len(steps))
    shift = largest_entry_shift(waves, steps, eta, flow=kind == "FLOW")
    with reference(shift):
        expected = stock(model, tiny, **settings)
    return guided, expected, stock(model, tiny, **settings)


def check(guided: torch.Tensor, expected: torch.Tensor, plain: torch.Tensor) -> None:
    change = (expected - plain).norm()
    # Rounding only: an extra, a missing or a wrong shift would make a difference as large as the change.
    assert (guided - expected).norm() <= 1e-3 * change + 1e-5 * plain.norm()
    assert change > 1e-2 * plain.norm()


@contextmanager
def started_elsewhere(sampler: str, shift: Shift) -> Iterator[None]:
    """Within the block, a sampler of the host starts from the shifted state: for any sampler, this is a shift at the
    first step."""
    stock_object = comfy.samplers.sampler_object
    own = stock_object(sampler)

    def start(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **settings: Any) -> torch.Tensor:
        return own.sampler_function(model, shift(x, sigmas[0], 0), sigmas, **settings)

    moved = comfy.samplers.KSAMPLER(start, own.extra_options, own.inpaint_options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comfy.samplers, "sampler_object", lambda name: moved if name == sampler else stock_object(name)
        )
        yield


def check_parity(
    tiny: Any, stock: Callable[..., torch.Tensor], sampler: str, scheduler: str, kind: str
) -> None:
    """Check every step of a known sampler, and the first step of an unknown one."""
    if sampler in EXACT | HANDLED:
        check(*guided_and_expected(tiny, stock, sampler, scheduler, kind))
    else:
        elsewhere = partial(started_elsewhere, sampler)
        check(*guided_and_expected(tiny, stock, sampler, scheduler, kind, elsewhere, end_percent=0.1))


@pytest.mark.parametrize(("sampler", "kind"), covering_samplers(["EPS", "FLOW"]))
def test_the_shift_reaches_the_state_once_at_every_step(tiny, stock, sampler, kind):
    scheduler = "normal" if kind == "EPS" else "simple"
    if verdict(tiny, sampler) != "refused":
        check_parity(tiny, stock, sampler, scheduler, kind)


@pytest.mark.parametrize("sampler", ["euler", "lms", "dpmpp_2m_sde", "uni_pc", "sa_solver_pece"])
def test_a_shift_at_the_first_step_is_another_start(tiny, stock, sampler):
    """The check for unknown samplers, tried on known ones."""
    elsewhere = partial(started_elsewhere, sampler)
    check(*guided_and_expected(tiny, stock, sampler, "normal", "EPS", elsewhere, end_percent=0.1))


@pytest.mark.long
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_under_every_scheduler(tiny, stock, record_property, sampler, scheduler):
    """A cell of the support matrix."""
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    settings = {"sampler_name": sampler, "scheduler": scheduler, "steps": STEPS, "latent_image": latent}
    found = verdict(tiny, sampler)
    record_property("support", ["sampler", sampler, scheduler, found])
    if found == "refused":
        with pytest.raises(ValueError, match=f"'{sampler}'"):
            stock(zero_guided(tiny), tiny, **settings)
        return
    check_parity(tiny, stock, sampler, scheduler, "EPS")
    assert torch.equal(stock(zero_guided(tiny), tiny, **settings), stock(tiny.model, tiny, **settings))


def zero_gradient(denoise: Any, x: torch.Tensor, sigma: torch.Tensor, base_model: Any) -> ScoreGradient:
    return ScoreGradient(torch.zeros(len(x)), torch.zeros_like(x))


def zero_guided(tiny: Any, model: Any = None) -> Any:
    """A MODEL that is guided at every step by a gradient of zero."""
    schedule = Schedule(start_percent=0.0, end_percent=1.0)
    return guide_model(
        model or tiny.model, tiny.vae, tiny.encoder, schedule, RarityGradient(k=3), gradient=zero_gradient
    )


@pytest.mark.parametrize(("sampler", "kind"), covering_samplers(["EPS", "V_PREDICTION", "FLOW"]))
def test_a_zero_shift_is_bit_identical_to_the_stock_sampler(tiny, stock, sampler, kind):
    if verdict(tiny, sampler) == "refused":
        return
    model = tiny.make_model(kind)
    patched = zero_guided(tiny, model)
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    settings = {"sampler_name": sampler, "steps": 4, "denoise": 0.7, "latent_image": latent}
    assert torch.equal(stock(patched, tiny, **settings), stock(model, tiny, **settings))


@pytest.mark.parametrize("sampler", sorted(HANDLED | {"euler", "lms"}))
def test_a_run_that_ends_in_noise_carries_the_shift_to_its_end(tiny, stock, sampler):
    """KSamplerAdvanced's range: the first steps of a longer run."""
    import nodes as host_nodes

    def run(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return host_nodes.KSamplerAdvanced().sample(
                model, "enable", 5, 8, 3.0, sampler, "normal", tiny.positive, tiny.negative,
                {"samples": torch.zeros(2, 4, 8, 8)}, 0, 5, "enable",
            )[0]["samples"].clone()  # fmt: skip

    schedule = Schedule(strength=0.7, start_percent=0.0, end_percent=1.0)
    patched = guide_model(
        tiny.model, tiny.vae, tiny.encoder, schedule, RarityGradient(k=3), gradient=wave_gradient
    )
    guided = run(patched)
    with shifted(largest_entry_shift(waves, list(range(5)), 0.7 * 3 / 5, flow=False)):
        expected = run(tiny.model)
    check(guided, expected, run(tiny.model))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_passes_its_dry_run_or_is_refused_by_name(tiny, name):
    sampler = comfy.samplers.sampler_object(name)
    before = torch.get_rng_state()
    found = verdict(tiny, name)
    assert torch.equal(before, torch.get_rng_state())
    for known, names in (("exact", EXACT), ("handled", HANDLED), ("refused", REFUSED)):
        assert found == known or name not in names
    if name in REFUSED:
        assert repr(name) in sampler_refusal(sampler)
        return
    assert sampler_refusal(sampler) is None
    if found == "refused":
        with pytest.raises(
            ValueError, match=r"JEPA guidance does not support the sampler|cannot tell how the sampler"
        ):
            probe(sampler, SIGMAS, sampler.extra_options, inner_model(tiny))
        return
    steps = probe(sampler, SIGMAS, sampler.extra_options, inner_model(tiny))
    # dpm_fast has its own steps of three model calls; all other samplers have one step per sigma
    assert steps.steps == (2 if name == "dpm_fast" else 4)
    assert sorted(steps.first.values()) == list(range(steps.steps))
    assert steps.first[0] == 0
    assert steps.sigmas[0] == pytest.approx(14.0)
    assert steps.sigmas[-1] == 0


@pytest.mark.parametrize(
    ("kind", "scheduler"), covering(["EPS", "V_PREDICTION_EDM", "FLOW"], ["normal", "simple"])
)
def test_the_verdict_depends_on_the_sampler_alone(tiny, kind, scheduler):
    """Not on the number of steps, or on the noise level at the start."""
    tiny.model = tiny.make_model(kind)
    sampling = tiny.model.model.model_sampling
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, 8)
    for name in sorted(HANDLED | {"euler", "lms", "ddpm", "deis"}):
        sampler = comfy.samplers.sampler_object(name)
        for sigmas in (whole, whole[:2], whole[:-1], whole[-4:], whole[-2:]):
            if name.startswith("uni_pc") and len(sigmas) < 4:
                continue  # the host's UniPC needs three steps
            found = probe(sampler, sigmas, {}, inner_model(tiny))
            assert (found.carry is not None) == (name in HANDLED), (name, sigmas)


def test_the_host_has_at_least_43_of_the_known_samplers():
    known = EXACT | HANDLED | REFUSED
    assert len(known & set(SAMPLERS)) >= 43
    assert len(EXACT & HANDLED) == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lcm", {"noise_clip_std": 2.0}),
        ("euler", {"s_churn": 5.0}),
        ("heun", {"s_churn": 5.0, "s_noise": 1.1}),
    ],
)
def test_options_of_a_sampler_do_not_change_the_verdict(tiny, name, options):
    function = comfy.samplers.sampler_object(name).sampler_function
    if not set(options) <= set(inspect.signature(function).parameters):
        pytest.skip("this host's sampler has no such option")
    assert probe(function, SIGMAS, options, inner_model(tiny)).carry is None


def hook_arguments() -> dict:
    """The arguments that the host passes to a post-CFG hook."""
    received: dict = {}

    def hook(args: dict) -> float:
        received.update(args)
        return 0.0

    comfy.samplers.cfg_function(None, 0.0, 0.0, 1.0, 0.0, 1.0, {"sampler_post_cfg_function": [hook]})
    return received


@pytest.mark.parametrize("key", sorted(hook_arguments()))
def test_a_sampler_may_read_every_argument_that_the_host_passes_to_its_hook(tiny, key):
    """As cfgpp_ud10_ab of newer hosts does, to see whether there is an unconditional estimate."""
    received = []

    def curious(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def hook(args):
            received.append(args[key])
            return args["denoised"]

        options = {**extra_args["model_options"], "sampler_post_cfg_function": [hook]}
        return loop(model, x, sigmas, {**extra_args, "model_options": options}, callback)

    model = inner_model(tiny)
    model.inner_model.conds = {"positive": tiny.positive, "negative": tiny.negative}
    assert probe(curious, SIGMAS, {}, model).carry is None
    assert received
    assert received[0] is not None


# --- unknown samplers -------------------------------------------------------------------------------------------


def loop(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method, as other packs write their samplers."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return loop(model, x, sigmas, extra_args, lambda state: None)


def multistep(
    remembers: str, copies: bool, shift: Shift = lambda x, sigma, step: x
) -> Callable[..., torch.Tensor]:
    """A sampler of second order.

    Args:
        remembers: the last "answer" (model output), the last "derivative", or "both".
        copies: whether the model gets a copy of the state.
        shift: applied to the state at the start of each step.
    """

    def sample_new(model, x, sigmas, extra_args=None, callback=None, disable=None):
        last = None
        for i in range(len(sigmas) - 1):
            x = shift(x, sigmas[i], i)
            denoised = model(x.clone() if copies else x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
            derivative = (x - denoised) / sigmas[i]
            slope = derivative
            if last is not None and remembers in ("derivative", "both"):
                slope = slope + 0.3 * (derivative - last[0])
            if last is not None and remembers in ("answer", "both"):
                slope = slope - 0.2 * (denoised - last[1]) / sigmas[i]
            x = x + slope * (sigmas[i + 1] - sigmas[i])
            last = derivative, denoised
        return x

    return sample_new


def copying(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return loop(lambda z, s, **rest: model(z.clone(), s, **rest), x, sigmas, extra_args, callback)


def forgetful(*args, **kwargs):
    return multistep("derivative", copies=True)(*args, **kwargs)


def bounded(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """It bounds a copy of its state, so a shift is not carried along by a constant factor."""
    for i in range(len(sigmas) - 1):
        denoised = model(x.clone(), sigmas[i] * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = denoised + sigmas[i + 1] * torch.tanh((x - denoised) / sigmas[i])
    return x


def stale(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """It passes its own state to the model, but remembers a derivative at the state before the shift."""
    last = None
    for i in range(len(sigmas) - 1):
        before = x.clone()
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        slope = (x - denoised) / sigmas[i]
        if last is not None:
            slope = slope + 0.3 * (slope - last)
        last = (before - denoised) / sigmas[i]
        x = x + slope * (sigmas[i + 1] - sigmas[i])
    return x


def adaptive(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Takes an extra step at the start if the model's output is not zero."""
    twice = bool(model(x, sigmas[0] * x.new_ones(len(x)), **extra_args).any())
    return loop(model, x, torch.cat([sigmas[: twice + 1], sigmas[1:]]), extra_args, callback)


def broken(model, x, sigmas, extra_args=None, callback=None, disable=None):
    raise KeyError("secret")


def test_a_sampler_of_another_pack_is_guided_like_the_hosts(tiny):
    found = probe(loop, SIGMAS, {}, inner_model(tiny))
    assert found.first == {0: 0, 1: 1, 2: 2, 3: 3}
    assert found.carry is None


@pytest.mark.parametrize(
    ("function", "carried"),
    [
        (multistep("answer", copies=False), False),
        (multistep("derivative", copies=False), False),
        (multistep("both", copies=False), False),
        (multistep("answer", copies=True), True),
        (copying, True),
    ],
)
def test_a_sampler_is_sorted_by_how_it_uses_its_state(tiny, function, carried):
    for sigmas in (SIGMAS, SIGMAS[:2], SIGMAS[:-1]):
        assert (probe(function, sigmas, {}, inner_model(tiny)).carry is not None) == carried


@pytest.fixture
def add_to_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Adds a sampler and a scheduler named "new" to those of the host."""

    def halves(model_sampling: Any, steps: int) -> torch.Tensor:
        highest = float(model_sampling.sigma_max)
        return torch.tensor([*(highest * 0.5**step for step in range(steps)), 0.0])

    samplers = comfy.samplers
    monkeypatch.setattr(samplers.KSampler, "SAMPLERS", [*samplers.KSampler.SAMPLERS, "new"])
    monkeypatch.setattr(samplers.KSampler, "SCHEDULERS", [*samplers.KSampler.SCHEDULERS, "new"])
    monkeypatch.setitem(samplers.SCHEDULER_HANDLERS, "new", samplers.SchedulerHandler(halves))

    def add(function: Callable) -> None:
        monkeypatch.setattr(function, "__module__", "comfy.k_diffusion.sampling")
        monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_new", function, raising=False)

    return add


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize(
    ("remembers", "copies", "found"),
    [
        ("answer", False, "exact"),
        ("derivative", False, "exact"),
        ("both", False, "exact"),
        ("answer", True, "handled"),
        ("derivative", True, "refused"),
    ],
)
def test_a_new_sampler_of_the_host_is_sorted_when_it_runs(
    tiny, stock, add_to_host, kind, remembers, copies, found
):
    add_to_host(multistep(remembers, copies))
    assert verdict(tiny, "new") == found
    if found == "refused":
        with pytest.raises(ValueError, match="does not support the sampler 'new': in a dry run"):
            stock(zero_guided(tiny), tiny, sampler_name="new", scheduler="new")
        return

    @contextmanager
    def written_in(shift: Shift) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.k_diffusion.sampling, "sample_new", multistep(remembers, copies, shift))
            yield

    check(*guided_and_expected(tiny, stock, "new", "new", kind, written_in))
    check_parity(tiny, stock, "new", "new", kind)
    assert torch.equal(
        stock(zero_guided(tiny), tiny, sampler_name="new"), stock(tiny.model, tiny, sampler_name="new")
    )


def test_a_sampler_of_another_pack_may_have_the_name_of_one_of_the_hosts(tiny):
    def sample_unipc(*args, **kwargs):
        return loop(*args, **kwargs)

    assert probe(sample_unipc, SIGMAS, {}, inner_model(tiny)).carry is None


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (silent, "does not report its steps"),
        (forgetful, "did not follow a change of the latent"),
        (bounded, "did not follow a change of the latent"),
        (stale, "did not follow a change of the latent"),
        (adaptive, "its steps depend on the image"),
        (broken, r"cannot tell how the sampler 'broken' \(not in KSampler's menu; from tests\) runs"),
    ],
)
def test_a_sampler_that_cannot_be_guided_is_refused_by_name(tiny, function, why):
    with pytest.raises(ValueError, match=why) as caught:
        probe(function, SIGMAS, {}, inner_model(tiny))
    assert repr(function.__name__) in str(caught.value)


def test_a_sampler_that_runs_in_another_order_than_in_its_dry_run_is_stopped(tiny):
    def moody(model, x, sigmas, extra_args=None, callback=None, disable=None):
        """Two calls per step, but only for a real latent."""
        for i in range(len(sigmas) - 1):
            for _ in range(2 if x.shape[-1] == 8 else 1):
                denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
            x = denoised
        return x

    patched = guide_model(
        tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3), gradient=wave_gradient
    )
    import comfy.sample

    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"'moody' .* runs in another order"):
        comfy.sample.sample_custom(
            patched,
            torch.randn(1, 4, 8, 8),
            3.0,
            comfy.samplers.KSAMPLER(moody),
            SIGMAS,
            tiny.positive,
            tiny.negative,
            torch.zeros(1, 4, 8, 8),
        )
