"""What the benchmarks compare does the same work."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from absl import flags

from benchmarks import cases, data, data_stage, step, workloads
from rpt.model import config as model_config

MODEL = model_config.ModelConfig(
    vocab_size=96, width=16, num_layers=2, num_heads=4, num_kv_heads=2, head_width=8, ff_width=32
)


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def params():
    return step.transformer.init(MODEL, jax.random.key(0))


def bench(layout: str, params, dtype="float32") -> step.Bench:
    model = dataclasses.replace(MODEL, dtype=dtype)
    return step.Bench(model, params, workloads.WORKLOADS["tiny"], layout)


@pytest.fixture(scope="module")
def trunk(params):
    """Thoughts and gradients of the trunk layout."""
    found = bench("trunk", params)
    result = found.think(found.prefill())
    return result, found.learn(result)


@pytest.mark.parametrize("layout", ["rows", "group"])
def test_every_layout_learns_the_same_from_the_same_thoughts(layout, trunk, params):
    result, expected = trunk
    found = bench(layout, params).learn(result)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


def test_in_bfloat16_it_learns_nearly_the_same(trunk, params):
    """From the same thoughts: every gradient to 3% of its norm."""
    result, expected = trunk
    found = bench("trunk", params, "bfloat16").learn(result)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert 1e-4 < np.linalg.norm(x - y) / np.linalg.norm(y) < 0.03


@pytest.mark.parametrize("layout", ["trunk", "rows", "group"])
def test_every_layout_thinks_as_its_trainer_does(layout, trunk, params):
    """Sampled log-probabilities are those of whole rows under the same parameters."""
    made = bench(layout, params)
    result = made.think(made.prefill())
    R, T = result.tokens_BRT.size // result.tokens_BRT.shape[-1], result.tokens_BRT.shape[-1]
    tokens, sampled = (x.reshape(R, T) for x in (result.tokens_BRT, result.sampled_BRT))
    recorded = result.log_prob_BRT.reshape(R, T)
    cuts = np.repeat(made.workload.cuts, made.workload.group)
    for row, cut in enumerate(cuts):
        whole = np.concatenate([made.document_S[:cut], tokens[row]])[None]
        hidden, _ = step.transformer.trunk(MODEL, params, *step._rows(whole))
        logits = hidden[0] @ step.transformer.unembedding(MODEL, params).T
        expected = jax.nn.log_softmax(logits)[np.arange(len(whole[0]) - 1), whole[0, 1:]][cut - 1 :]
        where = sampled[row]
        np.testing.assert_allclose(recorded[row][where], expected[where], atol=1e-4)


def test_every_op_has_what_its_figures_assume():
    """Attention is timed on what its FLOPs count: whole trunks and full pasts."""
    for case in cases.cases(np.float32, "chunked"):
        if "attention" in case.op:
            assert set(case.integers.values()) > {0}
            integers = [i for i, x in enumerate(case.inputs) if getattr(x, "dtype", 0) == np.int32]
            assert set(integers) == set(case.integers)


def test_from_its_third_time_a_step_compiles_nothing(params):
    """The second finds parameters where an update has put them."""
    made = bench("trunk", jax.tree.map(jax.numpy.array, params))
    made.step()
    made.step()
    compiled = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    made.step()
    assert not compiled
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert compiled
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    data.generate(folder, 1)
    return folder / "corpus.jsonl"


def test_what_the_data_benchmark_does_once_is_done_from_nothing(corpus, monkeypatch):
    monkeypatch.setenv("RPT_CACHE", "")  # `open` sets it to a folder of its own
    jobs = [data_stage.first(job, str(corpus.parent)) for job in ("open", "prepare", "prepare")]
    assert [job["job"] for job in jobs] == ["open", "prepare", "prepare: was there, verified"]
    assert not list(pathlib.Path(os.environ["RPT_CACHE"]).glob("*"))


@pytest.mark.parametrize("stage", ["in_order", "shuffled", "packed", "trunks"])
def test_every_stage_of_the_data_benchmark_reads_the_whole_corpus(stage, corpus):
    texts = [json.loads(line)["text"] for line in corpus.open()]
    found = data_stage.measure(stage, f"jsonl:{corpus}", 1000)
    ends = {"packed": 2, "trunks": 1}.get(stage, 0)  # bos and eos, or bos in every window
    assert found["until"] == "the end"
    assert found["tokens"] >= sum(map(len, texts)) + ends * len(texts)
    assert found["tokens"] <= 1.05 * sum(map(len, texts))
