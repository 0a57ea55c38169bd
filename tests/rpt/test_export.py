"""Exported folders: round trips to the bit, transformers' own tensors, and nothing half-written."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from data import tokenizers
from rpt import export, weights
from tests.rpt import fixture_models


@pytest.mark.parametrize("variant", fixture_models.VARIANTS)
def test_export_then_load_is_bit_identical(tmp_path, variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    export.export(tmp_path / "out", config, params, fixture_models.TinyTokenizer())
    again_config, again = weights.load(tmp_path / "out")
    assert again_config == config
    fixture_models.assert_same_trees(again, params)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((fixture_models.FIXTURES / variant / "config.json").read_text())
    assert raw["architectures"] == original["architectures"]
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (58, 59)


@pytest.mark.parametrize("variant", fixture_models.VARIANTS)
def test_export_writes_the_tensors_of_transformers(tmp_path, variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    original = fixture_models.FIXTURES / variant / "model.safetensors"
    dtype = "bfloat16" if variant.startswith("qwen2") else "float32"
    export.export(tmp_path / "out", config, params, fixture_models.TinyTokenizer(), dtype=dtype)
    ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    theirs = safetensors.numpy.load_file(original)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_export_refuses_and_leaves_nothing(tmp_path):
    config, params = weights.load(fixture_models.FIXTURES / "llama3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(ValueError, match="not empty"):
        export.export(tmp_path / "full", config, params, fixture_models.TinyTokenizer())
    with pytest.raises(ValueError, match="do not belong together"):
        export.export(tmp_path / "out", config, params, tokenizers.ByteTokenizer())
    both = dataclasses.replace(config, qk_norm=True, qkv_bias=True)
    with pytest.raises(ValueError, match="both qk_norm and qkv_bias"):
        export.export(tmp_path / "out", both, params, fixture_models.TinyTokenizer())
    # A failure in the middle: the tokenizer is written, then the tree lacks a parameter.
    broken = {key: value for key, value in params.items() if key != "final_norm"}
    with pytest.raises(KeyError):
        export.export(tmp_path / "out", config, broken, fixture_models.TinyTokenizer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_export_fills_an_empty_folder(tmp_path):
    config, params = weights.load(fixture_models.FIXTURES / "llama3")
    (tmp_path / "out").mkdir()
    export.export(tmp_path / "out", config, params, fixture_models.TinyTokenizer())
    assert weights.load(tmp_path / "out")[0] == config
