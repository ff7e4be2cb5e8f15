"""MinorityPrompt in the host's samplers and graphs: steps, batches, masks, other patches, and what is refused."""

from __future__ import annotations

import itertools

import comfy.hooks
import comfy.model_management
import comfy.samplers
import nodes as host_nodes
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode
from jepa_guidance.host.guidance import prompt_run
from jepa_guidance.host.guidance.self_guided import apply_self_guidance, self_guided_schedule
from jepa_guidance.host.search.config import SearchConfig
from jepa_guidance.host.search.search import apply_search
from jepa_guidance.host.variety.cads import Cads
from jepa_guidance.host.variety.patch import apply_boost, apply_cads
from jepa_guidance.nodes.minority_prompt import JEPAMinorityPrompt

from tests.combinations import covering
from tests.host.clips import tiny_clip, tiny_sd3_clip, tiny_sdxl_clip
from tests.host.families import model_of, sd3, supported, unet
from tests.host.guidance.test_minority_prompt import TEXT, learned
from tests.host.search.test_search import row_by_row


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def draw(tiny, stock):
    """Sample a patched MODEL with its prompt."""
    return lambda patched, **changes: stock(
        patched[0], tiny, **{"positive": patched[1], "steps": 4} | changes
    )


def prompts_seen(model, seen):
    """A clone of the MODEL that notes the prompts of each call of its network without a gradient."""

    def listen(apply, arguments):
        prompts = arguments["c"]["c_crossattn"]
        if not torch.is_grad_enabled():
            seen.append((float(arguments["timestep"][0]), prompts.clone()))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(listen)
    return clone


# --- samplers and steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "cfg"), covering(["EPS", "V_PREDICTION", "EDM", "FLOW"], [1.0, 3.0]))
def test_kinds_of_models_learn(tiny, clip, draw, kind, cfg):
    model = tiny.make_model(kind)
    patched = learned(model, clip)
    first, again = (draw(patched, cfg=cfg) for _ in range(2))
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert (first - draw((model, patched[1]), cfg=cfg)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "sampler",
    [
        *("euler", "heun", "euler_cfg_pp"),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("dpmpp_2s_ancestral", "dpmpp_2m", "uni_pc")
        ),
    ],
)
def test_samplers_learn_once_at_the_start_of_each_step(tiny, clip, draw, monkeypatch, sampler):
    """Also those that call the model several times a step, or keep a copy of their state."""
    levels, calls = [], itertools.count()
    learn = prompt_run.PromptRun.learned

    def watched(run, model, x, sigmas, kwargs, step):
        levels.append((step, float(sigmas[0])))
        return learn(run, model, x, sigmas, kwargs, step)

    monkeypatch.setattr(prompt_run.PromptRun, "learned", watched)
    patched = learned(tiny.model, clip, on_pass=calls.__next__)
    first, again = (draw(patched, sampler_name=sampler, steps=5) for _ in range(2))
    assert torch.equal(first, again)
    assert (first - draw((tiny.model, patched[1]), sampler_name=sampler, steps=5)).abs().max() > 1e-3
    sigmas = comfy.samplers.calculate_sigmas(tiny.model.model.model_sampling, "normal", 5)[:-1]
    assert [step for step, _ in levels] == [*range(5)] * 2
    if sampler != "uni_pc":  # the host gives it other levels
        assert [level for _, level in levels] == pytest.approx(sigmas.tolist() * 2, rel=1e-5)
    assert next(calls) == 2 * 5 * 2


def test_the_token_stays_from_one_learned_step_to_the_next(tiny, clip, draw):
    seen: list = []
    patched = learned(prompts_seen(tiny.model, seen), clip, start=0.25, interval=2)
    draw(patched, steps=8, cfg=1.0)
    prompts = [prompt for level, prompt in seen]
    plain = patched[1][0][0]
    assert len(prompts) == 8
    assert all(torch.equal(prompt, plain.expand_as(prompt)) for prompt in prompts[:2])
    for step in (2, 4, 6):
        assert torch.equal(prompts[step], prompts[step + 1])
        assert not torch.equal(prompts[step], prompts[step - 1])
    place = clip.tokenizer.clip_l.tokenizer(TEXT)["input_ids"].index(49407)
    # the words before the token do not see it
    torch.testing.assert_close(
        prompts[7][:, :place], plain[:, :place].expand(2, -1, -1), rtol=1e-4, atol=1e-5
    )
    assert not torch.equal(prompts[7][0], prompts[7][1])


def test_custom_sampling(tiny, clip):
    model, positive = learned(tiny.model, clip)
    with torch.inference_mode():
        (sigmas,) = BasicScheduler.execute(tiny.model, "simple", 4, 1.0).result
        (noise,) = RandomNoise.execute(7).result
        images = []
        for one in (tiny.model, model):
            (guider,) = CFGGuider.execute(one, positive, tiny.negative, 3.0).result
            sampler = comfy.samplers.sampler_object("dpmpp_2m")
            latent = {"samples": torch.zeros(2, 4, 8, 8)}
            images.append(SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0])
    assert (images[0]["samples"] - images[1]["samples"]).abs().max() > 1e-3


def test_global_random_states_are_left_alone(tiny, clip, draw):
    patched = learned(tiny.model, clip)
    states = []
    for model in (tiny.model, patched[0]):
        torch.manual_seed(3)
        draw((model, patched[1]), sampler_name="euler_ancestral")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# --- batches, masks, prompts ------------------------------------------------------------------------------------


def test_an_image_alone_is_the_same_image_in_a_batch(tiny, clip, draw):
    patched = learned(row_by_row(tiny.model), clip)
    both = draw(patched)
    one = torch.zeros(1, 4, 8, 8)
    # the host draws the noise of these places of the batch
    alone = [draw(patched, latent_image={"samples": one, "batch_index": [i]}) for i in range(2)]
    assert torch.equal(both, torch.cat(alone))


def test_what_a_mask_keeps_stays(tiny, clip, draw):
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latent = {"samples": start, "noise_mask": mask}
    patched = learned(tiny.model, clip)
    found, plain = (draw((one, patched[1]), latent_image=latent) for one in (patched[0], tiny.model))
    torch.testing.assert_close(found[..., 4:], start[..., 4:], rtol=1e-5, atol=1e-5)
    assert (found - plain)[..., :4].abs().max() > 1e-3


@pytest.mark.parametrize(
    "text",
    ["", "a (small:1.3) robot", "one " * 74 + "end", "red robot " * 60, "cool cool"],
    ids=["empty", "weighted", "full", "long", "repeated"],
)
def test_prompts(tiny, clip, draw, text):
    patched = learned(tiny.model, clip, text)
    encoded = host_nodes.CLIPTextEncode().encode(clip, text)[0]
    assert torch.equal(patched[1][0][0], encoded[0][0])
    found = draw(patched, positive=encoded)
    assert found.isfinite().all()
    assert not torch.equal(found, draw((tiny.model, encoded)))


def test_clip_skip_is_kept(tiny, clip, draw):
    skipping = clip.clone()
    skipping.clip_layer(-2)
    patched = learned(tiny.model, skipping)
    assert not torch.equal(patched[1][0][0], learned(tiny.model, clip)[1][0][0])
    assert not torch.equal(draw(patched), draw((tiny.model, patched[1])))


def test_only_the_prompt_of_the_text_is_replaced(tiny, clip, draw):
    seen: list = []
    patched = learned(prompts_seen(tiny.model, seen), clip)
    other = host_nodes.CLIPTextEncode().encode(clip, "a blue sky")[0]
    draw((patched[0], other + patched[1]), cfg=1.0)
    fixed = [prompt for _, prompts in seen for prompt in prompts if torch.equal(prompt, other[0][0][0])]
    assert 0 < len(fixed) < sum(len(prompts) for _, prompts in seen)


# --- other text encoders and denoisers --------------------------------------------------------------------------


def test_both_text_encoders_of_sdxl_have_a_token(draw, monkeypatch):
    clip = tiny_sdxl_clip(16)
    sizes = unet(64, num_classes="sequential", adm_in_channels=16 + 6 * 256, context=24)
    model = model_of(supported.SDXL, sizes, {})
    moved: dict = {}
    learn = prompt_run.learn

    def watched(start, *args):
        found = learn(start, *args)
        moved.update({name: (found[name] - start[name]).abs().max() for name in found})
        return found

    monkeypatch.setattr(prompt_run, "learn", watched)
    patched = learned(model, clip)
    negative = host_nodes.CLIPTextEncode().encode(clip, "")[0]
    found = draw(patched, negative=negative)
    assert moved.keys() == {"l", "g"}
    assert all(far > 1e-3 for far in moved.values())
    assert not torch.equal(found, draw((model, patched[1]), negative=negative))


def test_a_denoiser_that_writes_in_place(draw):
    """SD3's, with prompts from two text encoders, and without its third one."""
    clip = tiny_sd3_clip(16)
    family = sd3()
    wide = torch.nn.Linear(4096, 128)
    with torch.inference_mode():
        family.model.model.diffusion_model.context_embedder = wide
        family.model.model.diffusion_model.y_embedder.mlp[0] = torch.nn.Linear(24, 128)
    patched = learned(family.model, clip)
    negative = host_nodes.CLIPTextEncode().encode(clip, "")[0]
    how = {"negative": negative, "latent_image": family.latent}
    found = draw(patched, **how)
    assert found.isfinite().all()
    assert not torch.equal(found, draw((family.model, patched[1]), **how))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_text_encoders_in_fewer_bits(tiny, draw, dtype):
    """The run is that of the same numbers in float32."""
    images = []
    for kept in (dtype, torch.float32):
        clip = tiny_clip(kept)
        with torch.inference_mode():
            for own, value in zip(
                clip.cond_stage_model.parameters(), tiny_clip().cond_stage_model.parameters(), strict=True
            ):
                own.copy_(value.to(dtype).to(kept))
        images.append(draw(learned(tiny.model, clip)))
    plain = draw((tiny.model, learned(tiny.model, clip)[1]))
    assert (images[0] - images[1]).norm() < 1e-3 * (images[1] - plain).norm() + 1e-5 * plain.norm()


# --- other patches ----------------------------------------------------------------------------------------------

PATCHES = {
    "boost": lambda model: apply_boost(model, 1.5),
    "cads": lambda model: apply_cads(model, Cads(scale=0.5), 3),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_the_order_of_patches_does_not_matter(tiny, clip, draw, patch):
    apply = PATCHES[patch]
    model, positive = learned(apply(tiny.model), clip)
    before = draw((model, positive), steps=6)
    after = draw((apply(learned(tiny.model, clip)[0]), positive), steps=6)
    assert torch.equal(before, after)
    assert not torch.equal(before, draw((learned(tiny.model, clip)[0], positive), steps=6))
    assert not torch.equal(before, draw((apply(tiny.model), positive), steps=6))


def test_the_given_models_stay_as_they_were(tiny, clip, draw):
    encoded = host_nodes.CLIPTextEncode().encode(clip, TEXT)[0]
    before = draw((tiny.model, encoded))
    weights = [clip.cond_stage_model, tiny.model.model.diffusion_model]
    held = [list(part.parameters()) for part in weights]
    draw(learned(tiny.model, clip))
    for part, own in zip(weights, held, strict=True):
        assert all(one is other for one, other in zip(part.parameters(), own, strict=True))
    assert torch.equal(draw((tiny.model, encoded)), before)
    assert torch.equal(host_nodes.CLIPTextEncode().encode(clip, TEXT)[0][0][0], encoded[0][0])


def test_an_interrupt_leaves_everything_as_it_was(tiny, clip, draw):
    def passes():
        yield from range(2)
        raise comfy.model_management.InterruptProcessingException

    stopped = learned(tiny.model, clip, on_pass=passes().__next__)
    before = draw((tiny.model, stopped[1]))
    weights = list(clip.cond_stage_model.parameters())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        draw(stopped)
    assert torch.equal(draw((tiny.model, stopped[1])), before)
    assert all(one is other for one, other in zip(clip.cond_stage_model.parameters(), weights, strict=True))


def test_short_of_memory_it_goes_on_with_checkpointing(tiny, clip, draw, monkeypatch):
    patched = learned(tiny.model, clip)
    wanted, tried = draw(patched), []
    real = prompt_run.differentiable_denoiser

    def once(guider, key, *, checkpointing):
        tried.append(checkpointing)
        if tried == [False]:
            raise torch.OutOfMemoryError("out of memory")
        return real(guider, key, checkpointing=checkpointing)

    monkeypatch.setattr(prompt_run, "differentiable_denoiser", once)
    torch.testing.assert_close(draw(patched), wanted, rtol=1e-3, atol=1e-2)
    assert tried == [False, *[True] * 4]


# --- refusals ---------------------------------------------------------------------------------------------------


def others(tiny):
    schedule = self_guided_schedule(0.3, 1)
    search = SearchConfig(candidates=4, count=2)
    return {
        "guidance": lambda model: apply_self_guidance(model, schedule, 0.8),
        "search": lambda model: apply_search(model, tiny.vae, tiny.encoder, search)[0],
    }


@pytest.mark.parametrize(("other", "first"), covering(["guidance", "search"], [True, False]))
def test_guidance_and_search_on_the_same_model_are_refused(tiny, clip, draw, other, first):
    apply = others(tiny)[other]

    def run():
        model, positive = learned(apply(tiny.model) if first else tiny.model, clip)
        draw((model if first else apply(model), positive))

    with pytest.raises(ValueError, match="MinorityPrompt does not run together with JEPA Guidance"):
        run()


def test_another_prompt_is_refused_before_the_run(tiny, clip, draw):
    model, _ = learned(tiny.model, clip)
    other = host_nodes.CLIPTextEncode().encode(clip, "a blue robot")[0]
    with pytest.raises(
        ValueError, match="does not find its text in the sampler's positive prompt; connect its output"
    ):
        draw((model, other))


@pytest.mark.parametrize(("word", "name"), [("xylophonically", "l"), ("two words", "l"), ("", "l")])
def test_a_word_of_several_tokens_is_refused(tiny, clip, word, name):
    with pytest.raises(ValueError, match=f"word '{word}' is not one token of the text encoder '{name}'"):
        learned(tiny.model, clip, word=word)


def test_a_text_encoder_without_embeddings_is_refused(tiny, clip):
    other = clip.clone()
    other.cond_stage_model = torch.nn.Module()
    other.cond_stage_model.clip_l = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="cannot give the text encoder of this CLIP a token to learn"):
        learned(tiny.model, other)


def test_weights_that_the_conditioning_changes_are_refused(tiny, clip, draw):
    model, positive = learned(tiny.model, clip)
    name = "diffusion_model.input_blocks.0.0.weight"
    hook = comfy.hooks.WeightHook(strength_model=0.5, strength_clip=0.0)
    hook.weights = {name: ("diff", (torch.ones(32, 4, 3, 3),))}
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    with pytest.raises(ValueError, match="whose weights a LoRA in the conditioning changes"):
        draw((model, comfy.hooks.set_hooks_for_conditioning(positive, group)))


def test_a_model_that_does_not_use_the_prompt_is_refused(tiny, clip, draw):
    deaf = tiny.model.clone()
    deaf.set_model_unet_function_wrapper(lambda apply, given: given["input"] * 0.5)
    with pytest.raises(ValueError, match="MinorityPrompt cannot reach the prompt's token"):
        draw(learned(deaf, clip))


def test_a_sampler_without_fixed_steps_is_refused(tiny, clip, draw):
    with pytest.raises(ValueError, match="does not support the sampler 'dpm_adaptive'"):
        draw(learned(tiny.model, clip), sampler_name="dpm_adaptive")


def test_a_cache_between_calls_is_refused(tiny, clip, draw):
    with torch.inference_mode():
        cached = EasyCacheNode.execute(tiny.model, 0.2, 0.15, 0.95, False).result[0]
    with pytest.raises(
        ValueError, match=r"MinorityPrompt needs a gradient: a patch of the denoiser.*such as EasyCache"
    ):
        draw(learned(cached, clip), steps=8)


# --- the node ---------------------------------------------------------------------------------------------------

INPUTS = {"text": TEXT, "iterations": 2, "learning_rate": 0.02, "interval": 2, "balance": 0.5, "word": "red"}
INPUTS |= {"start_percent": 0.0, "end_percent": 1.0}


def executed(**inputs):
    with torch.inference_mode():
        return JEPAMinorityPrompt.execute(**INPUTS | inputs).result


def test_the_node_learns_with_its_inputs(tiny, clip, draw):
    settings = {"interval": 2, "balance": 0.5, "word": "red", "iterations": 2, "learning_rate": 0.02}
    assert torch.equal(
        draw(executed(model=tiny.model, clip=clip)), draw(learned(tiny.model, clip, **settings))
    )


@pytest.mark.parametrize(
    "off", [{"iterations": 0}, {"learning_rate": 0.0}, {"start_percent": 0.1, "end_percent": 0.1}]
)
def test_off_is_the_model_itself_and_the_stock_prompt(tiny, clip, off):
    model, positive = executed(model=tiny.model, clip=clip, **off)
    assert model is tiny.model
    encoded = host_nodes.CLIPTextEncode().encode(clip, TEXT)[0]
    assert torch.equal(positive[0][0], encoded[0][0])
    assert torch.equal(positive[0][1]["pooled_output"], encoded[0][1]["pooled_output"])


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"learning_rate": float("nan")}, "learning_rate nan is outside 0.0 to 1.0"),
        ({"balance": -1.0}, "balance -1.0 is outside 0.0 to 100.0"),
        ({"start_percent": 0.5, "end_percent": 0.1}, "start_percent 0.5 is larger than end_percent 0.1"),
        ({"clip": None}, "clip must be of type CLIP, got NoneType"),
        ({"iterations": 1.5}, "iterations must be a whole number, got 1.5"),
        ({"text": 3}, "text must be text, got 3"),
    ],
)
def test_values_that_do_not_fit_are_named_before_the_run(tiny, clip, inputs, named):
    with pytest.raises(ValueError, match=named):
        executed(**{"model": tiny.model, "clip": clip} | inputs)
