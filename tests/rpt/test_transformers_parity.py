"""Exported folders opened by `transformers` itself; needs the `transformers` extra.

pip install -e '.[transformers]' && python -m rpt.fetch smollm2
python -m pytest -m transformers
"""

import pydoc_data.topics

import numpy as np
import pytest

from data import tokenizers
from rpt import export, fetch, weights
from tests.rpt import fixture_models

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def smollm2_path():
    try:
        return fetch.path("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    return *weights.load(smollm2_path), tokenizers.load(smollm2_path)


@pytest.fixture(scope="module")
def exported(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "smollm2"
    export.export(folder, *smollm2)
    return folder


def their_logits(torch, transformers, folder, tokens_S) -> np.ndarray:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(torch.tensor(np.asarray(tokens_S))[None].long()).logits[0].numpy()


@pytest.mark.parametrize("variant", fixture_models.VARIANTS)
def test_exported_fixture_has_the_golden_logits(torch, transformers, tmp_path, variant):
    config, params = weights.load(fixture_models.FIXTURES / variant)
    export.export(tmp_path / "out", config, params, fixture_models.TinyTokenizer())
    tokens, expected = fixture_models.golden(variant)
    found = their_logits(torch, transformers, tmp_path / "out", tokens)
    assert np.abs(found - expected).max() < 1e-6 * np.ptp(expected)


def test_exported_smollm2_agrees_on_256_tokens(torch, transformers, smollm2, exported):
    config, params, tokenizer = smollm2
    tokens = tokenizer.encode(pydoc_data.topics.topics["exceptions"])[:256]
    assert len(tokens) == 256
    ours = fixture_models.logits(config, params, tokens)
    theirs = their_logits(torch, transformers, exported, tokens)
    error = np.abs(ours - theirs).max() / np.ptp(theirs)
    print(f"largest difference {error:.2e} of the range {np.ptp(theirs):.1f}")
    assert error < 1e-4


def test_exported_tokenizer_gives_the_same_ids(transformers, smollm2, exported):
    tokenizer = smollm2[2]
    text = pydoc_data.topics.topics["exceptions"] + " caf\u00e9 \u4f60\u597d 12345"
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text).tolist()
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_transformers_reads_the_same_values_from_the_gguf(
    torch, transformers, smollm2_path, exported
):
    # transformers wants it for its GGUF reader.
    pytest.importorskip("accelerate")
    by_them = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).state_dict()
    by_us = transformers.AutoModelForCausalLM.from_pretrained(exported).state_dict()
    assert by_them.keys() == by_us.keys()
    for name in by_us:
        assert torch.equal(by_us[name], by_them[name]), name
