"""Generation at cuts: what is shown is what the model did, and marks stand for rewards."""

import functools

import jax
import numpy as np
import pytest

from data import tokenizers
from rpt import config, evaluate, generate, loading, rollout, scoring
from rpt.model import config as model_config
from rpt.model import transformer

TOKENIZER = tokenizers.ByteTokenizer()
MODEL = model_config.ModelConfig(
    vocab_size=TOKENIZER.vocab_size,
    width=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=16,
    ff_width=32,
)
TEXT = "To be, or not to be, that is the question."


@functools.cache
def params():
    """A random model that is sure of something."""
    fresh = jax.jit(lambda key: transformer.init(MODEL, key))(jax.random.key(0))
    return jax.tree.map(lambda x: x * 3, fresh)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> evaluate.Opened:
    template = tmp_path_factory.mktemp("template") / "template.txt"
    template.write_text("Text: {{document}}<think>{{thought}}</think>{{answer}}")
    experiment = config.Config(
        model=MODEL,
        data=config.DataConfig(tokenizer="bytes", template=str(template)),
        rollout=rollout.RolloutConfig(group_size=8, think_tokens=3),
    )
    return evaluate.Opened(loading.Loaded(MODEL, params(), TOKENIZER, {}), experiment, "memory")


def test_cuts_are_taken_where_they_are_asked_for(opened):
    found = generate.think_at(opened, TOKENIZER.encode(TEXT), [3, 10], 2, 0)
    assert [cut.index for cut in found] == [3, 10]
    assert [cut.before for cut in found] == [TEXT[:3], TEXT[:10]]
    assert [cut.target.decode() for cut in found] == [TEXT[3], TEXT[10]]
    for cut in found:
        assert len(cut.thoughts) == 2
        for thought in cut.thoughts:
            assert thought.reward == int(thought.prediction == cut.target)
            assert (thought.diagnosis == "right") == bool(thought.reward)
            closed = thought.diagnosis != "not_closed"
            assert closed == ("</think>" in thought.text)


def test_no_think_prediction_is_that_of_the_trunk(opened):
    """Entropy, best token and its probability belong to the same position, header included."""
    (cut,) = generate.think_at(opened, TOKENIZER.encode(TEXT), [5], 1, 0)
    header = loading.header_ids(TOKENIZER, "Text: ", True)
    tokens = np.concatenate([header, TOKENIZER.encode(TEXT)])[None]
    scores, _ = scoring.score_trunk(
        MODEL, params(), tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None]
    )
    place = (0, len(header) + 5)
    best = int(np.asarray(scores.best_BS)[place])
    # A token that ends the text says nothing.
    assert cut.no_think == (b"" if best == TOKENIZER.eos_id else TOKENIZER.token_bytes(best))
    assert cut.entropy_nats == pytest.approx(float(np.asarray(scores.entropy_BS)[place]), rel=1e-4)
    assert 1 / MODEL.vocab_size < cut.no_think_prob < 1
    if cut.no_think_reward:
        target = float(np.asarray(scores.target_log_prob_BS)[place])
        assert np.log(cut.no_think_prob) == pytest.approx(target, rel=1e-3)


def test_without_cuts_the_positions_of_highest_entropy_are_taken(opened):
    tokens = TOKENIZER.encode(TEXT)
    least = opened.config.positions.min_context
    every = generate.think_at(opened, tokens, list(range(least, len(tokens))), 1, 0)
    chosen = generate.think_at(opened, tokens, 4, 1, 0)
    assert [cut.index for cut in chosen] == sorted(cut.index for cut in chosen)
    highest = sorted((cut.entropy_nats for cut in every), reverse=True)[:4]
    assert sorted(cut.entropy_nats for cut in chosen) == pytest.approx(sorted(highest), rel=1e-4)


def test_the_seed_decides_the_thoughts(opened):
    tokens = TOKENIZER.encode(TEXT)
    first, again, other = (
        generate.think_at(opened, tokens, [9, 12], 2, seed)[0].thoughts for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("text", "cuts", "message"),
    [
        ("short", 4, "minimum context"),
        (TEXT, [0], "between 1 and"),
        (TEXT, [len(TEXT)], "between 1 and"),
        ("x", [1], "shorter"),
    ],
)
def test_texts_and_cuts_that_do_not_fit_are_refused(opened, text, cuts, message):
    with pytest.raises(ValueError, match=message):
        generate.think_at(opened, TOKENIZER.encode(text), cuts, 1, 0)


def test_rewarded_and_unrewarded_thoughts_are_marked():
    cut = generate.Cut(
        index=7,
        before="The sky is",
        target=b" blue",
        entropy_nats=1.25,
        no_think=b" the",
        no_think_prob=0.5,
        no_think_reward=0,
        thoughts=(
            generate.Thought("colour</think>", b" blue", 1, "right"),
            generate.Thought("grass</think>", b"blue", 0, "leading_space"),
            generate.Thought("and so on", None, 0, "not_closed"),
        ),
    )
    shown = generate.render([cut]).plain
    lines = [line.strip() for line in shown.splitlines()]
    assert "The sky is| blue|" in shown
    assert any("without thought: | the| [not rewarded]" in line for line in lines)
    assert "predicts | blue| [rewarded]" in lines
    assert "predicts |blue| [not rewarded]  leading space" in lines
    assert "predicts nothing [not rewarded]  not closed" in lines


def test_bytes_that_are_no_text_are_shown_escaped():
    thought = generate.Thought("", b"\xe2\n", 0, "wrong")
    cut = generate.Cut(1, "a", b"\xff", 1.0, b"", 0.1, 0, (thought,))
    shown = generate.render([cut]).plain
    assert "|\\xff|" in shown
    assert "|\\xe2\\n|" in shown


def test_text_comes_from_one_place(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("from a file")
    assert generate.read_text("", str(path)) == "from a file"
    assert generate.read_text("given", "") == "given"
    with pytest.raises(ValueError, match="either --text or --file"):
        generate.read_text("", "")
    with pytest.raises(FileNotFoundError, match="no such file"):
        generate.read_text("", str(tmp_path / "missing"))
    for content, message in ((b"\xff\xfe\x00", "UTF-8"), (b"a\0b", "zero bytes")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            generate.read_text("", str(path))
