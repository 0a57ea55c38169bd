"""The index says what its proxy says online; a stopped run of it changes no byte."""

import hashlib
import json
import math
import shutil

import jax
import numpy as np
import pytest

from data import difficulty, pipeline, records, sources, tokenizers
from rpt import cli, config, export, filtering, index, ledger, loading, positions, scoring, train
from rpt.model import config as model_config
from rpt.model import transformer
from tests.data import corpora
from tests.rpt import tiny_experiment

TOKENIZER = tokenizers.load("bytes")
SEQ_LEN, MIN_CONTEXT = 48, 8


@pytest.fixture(scope="module")
def proxy(tmp_path_factory) -> str:
    """A folder with a random model whose predictions differ from place to place."""
    folder = tmp_path_factory.mktemp("proxy") / "model"
    model = config.from_config_dict(tiny_experiment.get_config()).model
    assert isinstance(model, model_config.ModelConfig)
    params = transformer.init(model, jax.random.key(5))
    params = jax.tree.map(lambda x: x * 40 if x.ndim > 1 else x, params)
    export.export(folder, model, params, TOKENIZER)
    return str(folder)


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> str:
    """Documents of every length: shorter than the context, of one window, of several."""
    rng = np.random.default_rng(0)
    lengths = [1, 8, 9, 30, 43, 44, 75, 200, 47, 12, 130]
    texts = ["".join(rng.choice(list("abc de."), n - 1)) + "x" for n in lengths]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"jsonl:{path}"


def settings(spec, proxy, out, **changes) -> index.Settings:
    given = {
        "source": spec,
        "proxy": proxy,
        "out": out,
        "seq_len": SEQ_LEN,
        "min_context": MIN_CONTEXT,
        "batch_size": 2,
        "shard_documents": 3,
    }
    return index.Settings(**{**given, **changes})


@pytest.fixture(scope="module")
def built(spec, proxy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    index.build(settings(spec, proxy, folder))
    return folder


def batches(spec, count):
    return [
        batch
        for batch, _ in zip(
            pipeline.trunk_batches(
                [pipeline.Mix(sources.open_source(spec), 1.0, "corpus")],
                TOKENIZER,
                batch_size=4,
                seq_len=SEQ_LEN,
                header_ids=loading.header_ids(TOKENIZER, "", True),
                min_context=MIN_CONTEXT,
                seed=0,
            ),
            range(count),
        )
    ]


def eligible_of(batch):
    expressible_V = np.ones(TOKENIZER.vocab_size, bool)
    return positions.eligible_cuts(
        batch.tokens_BS,
        batch.lengths_B,
        batch.header_length,
        MIN_CONTEXT,
        TOKENIZER.special_ids,
        expressible_V,
    )


def test_selection_by_index_is_selection_online(spec, proxy, built):
    opened = difficulty.Index(built, TOKENIZER.digest())
    loaded = loading.load_any(proxy)
    online, indexed, found = [], [], batches(spec, 5)
    for batch in found:
        inputs = (batch.tokens_BS, batch.segments_BS, batch.positions_BS)
        scores, _ = scoring.score_trunk(loaded.model, loaded.params, *inputs)
        online.append(np.asarray(scores.filter_entropy_BS))
        entropy_BS, share = opened.trunk_entropies(batch)
        assert share == 1
        indexed.append(entropy_BS)
        eligible_BS = eligible_of(batch)
        difference = np.abs(online[-1] - entropy_BS)[eligible_BS]
        assert difference.max() < difficulty.ENTROPY_STEP / 2 + 1e-5
        assert np.isnan(entropy_BS[:, 0]).all()
    inside = np.concatenate([x[eligible_of(b)] for x, b in zip(online, found)])
    assert inside.std() > 0.1
    # Limits where no entropy lies within the quantisation.
    ordered = np.unique(inside)
    gaps = np.flatnonzero(np.diff(ordered) > 4 * difficulty.ENTROPY_STEP)
    low, high = (
        float(ordered[g : g + 2].mean()) for g in gaps[[len(gaps) // 3, 2 * len(gaps) // 3]]
    )
    chosen = 0
    for batch, first, second in zip(found, online, indexed):
        cuts = [
            positions.choose_cuts(
                entropy_BS,
                eligible_of(batch),
                cuts_per_document=4,
                low_nats=low,
                high_nats=high,
                random_fraction=0.2,
                mode="entropy",
                seed=1,
                step=2,
                document_ids_B=batch.document_ids_B,
            )
            for entropy_BS in (first, second)
        ]
        np.testing.assert_array_equal(cuts[0], cuts[1])
        chosen += int(cuts[0][1].sum())
    assert chosen > 30


def test_log_probabilities_are_of_the_true_tokens(spec, proxy, built):
    opened, loaded = difficulty.Index(built, TOKENIZER.digest()), loading.load_any(proxy)
    source = sources.open_source(spec)
    tokens = TOKENIZER.encode(source[4].text)
    row = np.concatenate([[TOKENIZER.bos_id], tokens]).astype(np.int32)[None]
    hidden, _ = transformer.trunk(
        loaded.model, loaded.params, row, np.ones_like(row), np.arange(row.shape[1])[None]
    )
    logits = hidden[0, :-1] @ transformer.unembedding(loaded.model, loaded.params).T
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens)), tokens]
    scores = opened.get(source[4].document_id)
    np.testing.assert_allclose(scores.log_prob, expected, atol=difficulty.SURPRISE_STEP / 2 + 1e-4)


def test_every_token_of_every_document_has_scores(spec, built):
    opened, source = difficulty.Index(built, TOKENIZER.digest()), sources.open_source(spec)
    assert len(opened) == len(source) == 11
    for number in range(len(source)):
        scores = opened.get(source[number].document_id)
        assert len(scores.entropy) == len(source[number].text.encode())
        assert np.isfinite(scores.entropy).all()
        assert np.isfinite(scores.log_prob).all()
    assert opened.get(12345) is None


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("documents", [1, 6])
def test_stopped_and_continued_it_has_the_same_bytes(spec, proxy, built, tmp_path, documents):
    out = tmp_path / "index"
    with pytest.raises(cli.Stopped, match=f"at document {documents}"):
        index.build(settings(spec, proxy, out), tiny_experiment.StopAfter(documents))
    with pytest.raises(ValueError, match="unfinished"):
        difficulty.Index(out, TOKENIZER.digest())
    index.build(settings(spec, proxy, out))
    # What a killed writer leaves is overwritten.
    assert digests(out) == digests(built)
    assert index.build(settings(spec, proxy, out)) == difficulty.read_manifest(built)


def test_without_a_header_the_first_token_has_no_prediction(spec, proxy, tmp_path):
    index.build(settings(spec, proxy, tmp_path / "index", add_bos=False))
    opened, source = (
        difficulty.Index(tmp_path / "index", TOKENIZER.digest()),
        sources.open_source(spec),
    )
    for number in range(len(source)):
        scores = opened.get(source[number].document_id)
        assert np.isnan(scores.entropy[0])
        assert np.isnan(scores.log_prob[0])
        assert np.isfinite(scores.entropy[1:]).all()


def test_mistakes_are_one_line(spec, proxy, built, tmp_path):
    with pytest.raises(ValueError, match=r"another tokenizer .*python -m rpt\.index"):
        difficulty.Index(built, tokenizers.ByteTokenizer(("<x>",), None, None).digest())
    with pytest.raises(ValueError, match="holds another index: its seq_len is 48, not 40"):
        index.build(settings(spec, proxy, built, seq_len=40))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(ValueError, match="holds no index"):
        index.build(settings(spec, proxy, tmp_path / "full"))
    with pytest.raises(ValueError, match="must exceed min_context"):
        index.build(settings(spec, proxy, tmp_path / "x", min_context=47))
    with pytest.raises(FileNotFoundError, match="no difficulty index"):
        difficulty.Index(tmp_path, TOKENIZER.digest())
    with pytest.raises(ValueError, match="not both"):
        config.PositionsConfig(proxy="a", index="b")


def test_a_damaged_shard_is_named_in_one_line(spec, built, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(built, folder)
    shard = folder / difficulty.shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-200])
    source = sources.open_source(spec)
    with pytest.raises(ValueError, match=shard.name) as error:
        difficulty.Index(folder, TOKENIZER.digest()).get(source[0].document_id)
    assert "\n" not in str(error.value)


# ---- training ------------------------------------------------------------------------------------

MINIATURE = "miniature:?kind=plain&split=train&size=60"


@pytest.fixture(scope="module")
def stories(proxy, tmp_path_factory):
    """An index of the training text, with the contexts of the tiny experiment."""
    folder = tmp_path_factory.mktemp("stories") / "index"
    found = tiny_experiment.get_config()
    given = settings(
        MINIATURE, proxy, folder, template=found.data.template, seq_len=found.train.seq_len
    )
    index.build(given)
    return folder


def trained(workdir, **changes):
    found = tiny_experiment.get_config()
    found.train.mixture = (("plain", MINIATURE, 1.0),)
    found.train.steps = 2
    found.update_from_flattened_dict(
        {"positions.low_nats": 0.5, "positions.high_nats": 2.5, **changes}
    )
    return train.train(config.from_config_dict(found), workdir)


def test_training_by_index_is_training_by_proxy(proxy, stories, tmp_path):
    online = trained(tmp_path / "online", **{"positions.proxy": proxy})
    indexed = trained(tmp_path / "indexed", **{"positions.index": str(stories)})
    assert indexed["params_sha256"] == online["params_sha256"]
    # The untrained policy itself is everywhere too unsure for the band.
    assert indexed["metrics"]["cuts"] == online["metrics"]["cuts"] > 0
    assert indexed["metrics"]["indexed_documents"] == 1
    assert "indexed_documents" not in online["metrics"]
    # The whole index instead of a pass of the proxy in each step; the policy's own are the same.
    tokens, flops = difficulty.Index(stories, TOKENIZER.digest()).cost
    model = config.from_config_dict(tiny_experiment.get_config()).model
    assert flops >= tokens * ledger.trunk_flops(model, 1, 1, passes=1) > 0
    passes = 2 * ledger.trunk_flops(model, 2, SEQ_LEN, passes=1)
    assert online["ledger"]["flops"]["score"] == 2 * passes
    assert indexed["ledger"]["flops"]["score"] == passes + flops
    assert indexed["ledger"]["tokens"]["score"] == 2 * 2 * SEQ_LEN + tokens


def test_an_index_of_other_text_is_refused_before_anything_is_written(built, tmp_path):
    with pytest.raises(ValueError, match="no document of the first batch"):
        trained(tmp_path / "run", **{"positions.index": str(built)})
    assert not (tmp_path / "run").exists()


def test_other_contexts_are_said(stories):
    opened = filtering.Filter(index=difficulty.Index(stories, TOKENIZER.digest()))
    found = tiny_experiment.get_config()
    header = np.array(opened.index.about.header_ids, np.int32)
    assert filtering.context_note(opened, header, config.from_config_dict(found)) is None
    found.train.seq_len = 64
    note = filtering.context_note(opened, header[1:], config.from_config_dict(found))
    assert "another header, seq_len 48 instead of 64" in note
    assert filtering.context_note(filtering.Filter(), header, config.Config()) is None


def test_a_document_that_was_tokenised_otherwise_is_named(spec, built):
    opened = difficulty.Index(built, TOKENIZER.digest())
    batch = batches(spec, 1)[0]
    shorter = tuple(document[:-1] for document in batch.documents)
    changed = pipeline.TrunkBatch(**{**vars(batch), "documents": shorter})
    with pytest.raises(ValueError, match=r"tokens, but .* in the difficulty index"):
        opened.trunk_entropies(changed)


def test_quantisation_stays_within_its_documented_error():
    rng = np.random.default_rng(0)
    entropy = np.concatenate([rng.uniform(0, math.log(16), 1000), [0, math.log(16), np.nan]])
    log_prob = np.concatenate([-rng.exponential(5, 1000), [0, -63.9, np.nan]])
    entry = difficulty.Entry(7, difficulty.Scores(entropy, log_prob))
    raw = difficulty.encode(entry)
    assert len(raw) == 12 + 4 * len(entropy)
    found = difficulty.decode(raw)
    assert found.document_id == 7
    np.testing.assert_allclose(found.scores.entropy, entropy, atol=2.2e-5, rtol=0)
    np.testing.assert_allclose(found.scores.log_prob, log_prob, atol=4.95e-4, rtol=0)
    far = difficulty.Scores(np.array([-1e-6]), np.array([-np.inf]))
    found = difficulty.decode(difficulty.encode(difficulty.Entry(1, far))).scores
    assert found.entropy == 0
    assert found.log_prob == pytest.approx(-64, abs=1e-2)


def test_faults_are_left_out_and_counted_and_an_edited_corpus_is_refused(proxy, tmp_path):
    path, out = tmp_path / "a.array_record", tmp_path / "index"
    raws = [f"document number {i}".encode() for i in range(9)]
    # One within the first shard, one at the end of the second.
    corpora.write_array_record(path, [raws[0], b"\xff", *raws[1:4], b"\xfe", *raws[4:]])
    given = settings(f"array_record:{path}", proxy, out)
    with pytest.raises(records.Fault, match="record 1 is not UTF-8"):
        index.build(given)
    given = settings(f"array_record:{path}?on_fault=skip", proxy, out)
    manifest = index.build(given)
    assert manifest["counts"] == {"fault/invalid_utf8": 2}
    assert [len(shard["faults"]) for shard in manifest["shards"]] == [1, 1, 0, 0]
    opened = difficulty.Index(out, TOKENIZER.digest())
    assert len(opened) == 9
    for raw in raws:
        scores = opened.get(records.document_id(raw.decode()))
        assert scores is not None
        assert len(scores.entropy) == len(raw)
    assert index.build(given) == manifest
    # As many documents, one of them another.
    corpora.write_array_record(path, [b"edited", b"\xff", *raws[1:4], b"\xfe", *raws[4:]])
    with pytest.raises(ValueError, match="holds another index: its documents_digest is"):
        index.build(given)
