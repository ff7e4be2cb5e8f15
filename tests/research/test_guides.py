"""The published encoders' sizes, and the figures that are counted from them."""

from __future__ import annotations

import json

import pytest
import torch

from jepa_core.architectures import architecture_of
from jepa_core.encoder import PLAIN_ATTENTION
from jepa_core.hub import ENCODERS
from research import bench as run
from research.costs import guides
from research.costs.guides import (
    PUBLISHED,
    counted,
    flop_of_a_pass,
    published,
    published_encoder,
    published_model,
)

FIGURES = json.loads((run.FIGURES / "guides.json").read_text(encoding="utf-8"))
TRAINED = guides.encoder_name(FIGURES)
MEASURED = ("scores", "seconds")


def test_every_published_encoder_has_its_sizes_and_its_row() -> None:
    assert list(PUBLISHED) == list(ENCODERS)
    assert list(FIGURES["guides"]) == [*ENCODERS, TRAINED]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_published_model_has_the_weights_of_its_file(name: str) -> None:
    with torch.device("meta"):
        model = published_model(name)
    assert sum(weight.numel() for weight in model.parameters()) == ENCODERS[name].parameters
    assert model.config.model_type == ENCODERS[name].model_type
    assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_a_published_encoder_embeds(name: str) -> None:
    encoder = published_encoder(name)
    config = encoder.model.config
    assert encoder.image_size == 224
    embedding = encoder.architecture.embed(encoder.model, torch.empty(1, 3, 224, 224, device="meta"))
    assert embedding.shape == (1, encoder.embed_dim)
    assert encoder.weight.is_meta
    assert not encoder.weight.requires_grad
    assert not encoder.model.training
    assert config._attn_implementation == PLAIN_ATTENTION
    # a file's text tower, predictor and pooling layer take no part
    assert sum(weight.numel() for weight in encoder.parameters()) <= ENCODERS[name].parameters


@pytest.mark.parametrize("name", ENCODERS)
def test_a_published_encoder_is_what_load_encoder_reads(name: str) -> None:
    row = architecture_of(ENCODERS[name].model_type)
    assert row is not None
    with torch.device("meta"):
        shapes = {key: tuple(weight.shape) for key, weight in published_model(name).state_dict().items()}
    if PUBLISHED[name].get("use_swiglu_ffn"):
        # how files name it; newer versions of transformers divide it in two
        shapes["encoder.layer.0.mlp.weights_in.weight"] = (0, 0)
    read = row.configuration(PUBLISHED[name].get("vision_config", PUBLISHED[name]), shapes).to_dict()
    assert read == published_encoder(name).model.config.to_dict()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("dinov2-small", 16**2 + 1),
        ("dinov2-with-registers-giant", 16**2 + 5),
        ("dinov3-vitb16-pretrain-lvd1689m", 14**2 + 5),
        ("clip-vit-large-patch14", 16**2 + 1),
        ("ijepa_vith14_1k", 16**2),
        ("vjepa2-vitl-fpc64-256", 14**2),
    ],
)
def test_operations_are_those_of_weights_and_of_attention(name: str, tokens: int) -> None:
    encoder = published_encoder(name)
    config = encoder.model.config
    # tables of positions are looked up, and norms' weights are not of a product
    matrices = sum(
        weight.numel()
        for key, weight in encoder.named_parameters()
        if weight.ndim > 1 and key.endswith(".weight") and "position" not in key
    )
    # queries by keys, and the attention by values: a multiply-add for every entry of the width and pair of tokens
    attention = 2 * 2 * tokens**2 * config.hidden_size * config.num_hidden_layers
    assert attention > 0.02 * flop_of_a_pass(encoder)
    assert flop_of_a_pass(encoder) == pytest.approx(2 * matrices * tokens + attention, rel=0.01)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_figures_are_those_of_a_fresh_count(name: str) -> None:
    row = FIGURES["guides"][name]
    assert row == published(name)
    assert all(row[part] is None for part in MEASURED)


def test_the_trained_encoder_counts_as_the_one_it_was_tuned_from() -> None:
    row = FIGURES["guides"][TRAINED]
    fresh = counted(published_encoder("dinov2-small"))
    assert {part: row[part] for part in fresh} == fresh
    assert row["scores"] == guides.spread_of_scores(TRAINED)
    assert row["scores"]["min"] < row["scores"]["median"] < row["scores"]["max"]
    assert 0 < row["seconds"]["projected"] < row["seconds"]["exact"]
    assert row["seconds"]["gradient"] > 0


def test_scores_of_another_encoder_are_not_quoted() -> None:
    assert guides.spread_of_scores("dinov2-small") is None


def test_the_table_says_what_may_not_be_done_and_leaves_out_what_nobody_measured() -> None:
    head, _, *lines = [line.split(" | ") for line in run.TABLES["guides"](FIGURES).split("\n")]
    table = {line[0].removeprefix("| "): line for line in lines}
    assert {len(line) for line in lines} == {len(head)} == {9}
    assert list(table) == list(FIGURES["guides"])
    licences = {name: line[5] for name, line in table.items()}
    assert licences["dinov2-small"] == "Apache-2.0"
    assert licences["ijepa_vith14_1k"] == "CC-BY-NC-4.0, **non-commercial**"
    assert licences["dinov3-vits16-pretrain-lvd1689m"] == "DINOv3 License, gated: by hand"
    for name in ENCODERS:
        assert [cell.strip(" |") for cell in table[name][-2:]] == ["", ""]
    assert all(cell.strip(" |") for cell in table[TRAINED])
