"""Weights from Hugging Face folders: parity with transformers' logits, and bad files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from data import tokenizers
from rpt import fetch, weights, weights_huggingface
from rpt.model import config as config_lib
from rpt.model import transformer
from tests.rpt import fixture_models


@pytest.mark.parametrize("variant", fixture_models.VARIANTS)
def test_logits_are_those_of_transformers(variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    tokens, expected = fixture_models.golden(variant)
    error = np.abs(fixture_models.logits(config, params, tokens) - expected).max() / np.ptp(
        expected
    )
    assert error < 1e-4


@pytest.mark.parametrize("variant", ["llama3", "qwen2_yarn"])
def test_fixtures_notice_a_missing_rope_scaling(variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    tokens, expected = fixture_models.golden(variant)
    plain = dataclasses.replace(config, rope_scaling=None)
    error = np.abs(fixture_models.logits(plain, params, tokens) - expected).max() / np.ptp(expected)
    assert error > 1e-2


@pytest.mark.parametrize("variant", fixture_models.VARIANTS)
def test_loaded_tree_is_the_tree_of_init(variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    expected = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, expected)


def test_old_rope_keys_mean_the_same(tmp_path):
    raw = json.loads((fixture_models.FIXTURES / "qwen2_yarn" / "config.json").read_text())
    scaling = dict(raw["rope_parameters"])
    theta = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    old = fixture_models.copy(
        "qwen2_yarn",
        tmp_path / "old",
        rope_parameters=None,
        rope_theta=theta,
        rope_scaling=scaling,
    )
    assert weights.load(old)[0] == weights.load(fixture_models.FIXTURES / "qwen2_yarn")[0]


def test_shards_are_the_whole(tmp_path):
    folder = fixture_models.copy("qwen3", tmp_path / "sharded")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fixture_models.assert_same_trees(
        weights.load(folder)[1], weights.load(fixture_models.FIXTURES / "qwen3")[1]
    )

    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors is missing") as error:
        weights.load(folder)
    fixture_models.assert_one_line(error)


def test_bfloat16_parameters_on_request():
    config, params = weights.load(fixture_models.FIXTURES / "qwen2", dtype="bfloat16")
    assert config.dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    # The fixture is stored in bfloat16, so nothing was rounded.
    whole = weights.load(fixture_models.FIXTURES / "qwen2")[1]
    fixture_models.assert_same_trees(jax.tree.map(lambda x: x.astype(np.float32), params), whole)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("llama3", {"model_type": "mixtral"}, "model_type 'mixtral'"),
        ("llama3", {"mlp_bias": True}, "mlp_bias"),
        ("llama3", {"attention_bias": True}, "attention_bias"),
        ("llama3", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama3", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama3", {"hidden_size": "32"}, "hidden_size must be a positive integer"),
        ("llama3", {"vocab_size": None}, "vocab_size must be a positive integer"),
        ("llama3", {"num_attention_heads": 3}, "not a multiple"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
            | {"layer_types": None},
            "sliding-window",
        ),
        ("llama3", {"intermediate_size": 48}, r"has shape .*40.* but its config says .*48"),
        ("llama3", {"num_hidden_layers": 3}, r"lacks 9 tensor\(s\)"),
        ("llama3", {"num_hidden_layers": 1}, r"has unexpected 9 tensor\(s\)"),
        ("llama3", {"tie_word_embeddings": True}, "lm_head.weight differs"),
        ("qwen3", {"tie_word_embeddings": False}, r"lacks 1 tensor\(s\).*lm_head"),
    ],
)
def test_contradictory_folders_are_one_clear_line(tmp_path, variant, changes, message):
    folder = fixture_models.copy(variant, tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=message) as error:
        weights.load(folder)
    fixture_models.assert_one_line(error)


def test_window_that_no_layer_uses_is_accepted(tmp_path):
    changes = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    folder = fixture_models.copy("qwen2", tmp_path / "model", layer_types=None, **changes)
    assert weights.load(folder)[0] == weights.load(fixture_models.FIXTURES / "qwen2")[0]


@pytest.mark.parametrize("keep", [0, 5, 8, 300, 0.5, -1])
def test_truncated_safetensors_is_one_clear_line(tmp_path, keep):
    folder = fixture_models.copy("llama3", tmp_path / "model")
    fixture_models.truncate(folder / "model.safetensors", keep)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated") as error:
        weights.load(folder)
    fixture_models.assert_one_line(error)


def test_truncated_config_is_one_clear_line(tmp_path):
    folder = fixture_models.copy("llama3", tmp_path / "model")
    fixture_models.truncate(folder / "config.json", 0.5)
    with pytest.raises(ValueError, match=r"config\.json is truncated") as error:
        weights.load(folder)
    fixture_models.assert_one_line(error)


def test_missing_files_name_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weights.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        weights.load(tmp_path)
    folder = fixture_models.copy("llama3", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        weights.load(folder)


def test_config_survives_json():
    scaling = config_lib.YarnScaling(4.0, 64, 16.0, 2.0, attention_factor=1.25)
    config = config_lib.ModelConfig(
        64, 32, 2, 4, 2, 8, 40, rope_theta=5e5, rope_scaling=scaling, norm_epsilon=1e-6
    )
    raw = weights_huggingface.config_to_json(config, max_positions=9, bos_id=None, eos_id=1)
    assert weights_huggingface.config_from_json(json.loads(json.dumps(raw)), "float32") == config


def test_vocabulary_may_be_padded_but_not_short():
    config, _ = weights.load(fixture_models.FIXTURES / "llama3")
    weights.check_vocabulary(config, fixture_models.TinyTokenizer())
    with pytest.raises(ValueError, match="embed only 64") as error:
        weights.check_vocabulary(config, tokenizers.ByteTokenizer())
    fixture_models.assert_one_line(error)


@pytest.mark.smollm2
def test_smollm2_reads_english():
    try:
        path = fetch.path("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    config, params = weights.load(path)
    tokenizer = tokenizers.load(path)
    weights.check_vocabulary(config, tokenizer)
    assert transformer.num_parameters(config) == 134_515_008
    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog and runs into the forest.")
    log_probs = jax.nn.log_softmax(fixture_models.logits(config, params, ids)[:-1])
    nll = -np.mean(np.asarray(log_probs)[np.arange(len(ids) - 1), ids[1:]])
    # Rows left in llama.cpp's order give 4.16: a wrong model still knows common words.
    assert abs(nll - 3.805) < 0.03


def test_absent_keys_have_the_defaults_of_transformers():
    raw = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 4, "intermediate_size": 40}
    config = weights_huggingface.config_from_json(raw, "float32")
    expected = config_lib.ModelConfig(
        64, 32, 2, 4, 4, 8, 40, rope_theta=1e4, norm_epsilon=1e-6, tied_head=False
    )
    assert config == expected
    qwen3 = weights_huggingface.config_from_json(raw | {"model_type": "qwen3"}, "float32")
    assert (qwen3.head_width, qwen3.qk_norm) == (128, True)
