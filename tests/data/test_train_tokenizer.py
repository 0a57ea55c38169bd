"""Trained tokenizers keep every byte, and special tokens are for markup alone."""

import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from data import records, sources, tokenizers, train_tokenizer
from tests.data import corpora

CODE = [
    f"def f{i}(x):\n    return  x + {i}\n\n\tHello, na\u00efve caf\u00e9! {i * 7919 % 997}\r\n"
    for i in range(200)
]
AWKWARD = [
    "  two spaces first and last  ",
    "\t\ttabs\n\n\nnewlines\r\n\x0b\x0c\x00\x1f",
    "\u6f22\u5b57\u304b\u306a \U0001f600 e\u0301 \ufb01 \u00a0nbsp\u2028",
    "\ufeffbom <think> 1234567890",
    "",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return train_tokenizer.train(records.from_texts(CODE), 360, records.Guard(), kind=request.param)


def test_it_opens_with_load_and_is_smaller_than_bytes(tokenizer, tmp_path):
    path = tmp_path / "a.model"
    path.write_bytes(tokenizer.model)
    opened = tokenizers.load(path)
    assert opened.digest() == tokenizer.digest()
    assert 267 < opened.vocab_size <= 360
    assert len(opened.encode(CODE[0])) < len(CODE[0].encode())


@hypothesis.settings(
    max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(strategies.text())
def test_any_text_comes_back_to_the_byte(tokenizer, text):
    hypothesis.assume("\u2581" not in text)
    ids = tokenizer.encode(text)
    assert tokenizers.joined_bytes(tokenizer, ids) == text.encode()
    assert not set(ids.tolist()) & (tokenizer.special_ids | {0})


@pytest.mark.parametrize("text", [*AWKWARD, *CODE[:3]])
def test_awkward_texts_come_back_to_the_byte(tokenizer, text):
    assert tokenizers.joined_bytes(tokenizer, tokenizer.encode(text)) == text.encode()


def test_special_tokens_are_one_token_in_markup_only(tokenizer):
    names = ["<bos>", "<eos>", "<think>", "</think>"]
    assert [tokenizer.token_bytes(i).decode() for i in (1, 2, 3, 4)] == names
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert {1, 2, 3, 4} <= tokenizer.special_ids
    assert tokenizer.encode_markup("<think>a</think>").tolist() == [
        3,
        *tokenizer.encode("a").tolist(),
        4,
    ]
    assert not {3, 4} & set(tokenizer.encode("<think>a</think>").tolist())


def test_white_space_is_no_special_token(tokenizer):
    ids = tokenizer.encode("a\n\tb").tolist()
    assert not set(ids) & tokenizer.special_ids
    assert [tokenizer.token_bytes(i) for i in ids] == [b"a", b"\n", b"\t", b"b"]


def test_the_same_text_gives_the_same_file():
    source = records.from_texts(CODE)
    first, again = (train_tokenizer.train(source, 300, records.Guard(), seed=4) for _ in range(2))
    assert first.model == again.model


def lines_of(source, max_bytes, seed):
    return list(train_tokenizer._lines(source, records.Guard(), max_bytes, seed))


def test_a_sample_is_whole_documents_up_to_the_limit():
    source = records.from_texts([f"{i:03d} " * 10 for i in range(100)])
    lines = list(train_tokenizer._lines(source, records.Guard(), 1000, seed=0))
    assert sum(map(len, lines)) == 1000
    assert lines != list(train_tokenizer._lines(source, records.Guard(), 1000, seed=1))
    long = records.from_texts(["x" * 10_000 + "\n"])
    assert list(map(len, train_tokenizer._lines(long, records.Guard(), 10**6, seed=0))) == [
        4000,
        4000,
        2001,
    ]


@pytest.mark.parametrize(
    ("vocab_size", "special", "message"),
    [(261, (), "bytes and special tokens take 261"), (400, ("<a>", "<a>"), "must be distinct")],
)
def test_mistakes_are_one_line(vocab_size, special, message):
    source = records.from_texts(CODE)
    with pytest.raises(ValueError, match=message):
        train_tokenizer.train(source, vocab_size, records.Guard(), special_tokens=special)


def test_documents_that_cannot_be_read_are_left_out_and_counted(tmp_path, capsys):
    raws = [text.encode() for text in CODE]
    corpora.write_array_record(tmp_path / "a.array_record", [*raws[:9], b"\xff", *raws[9:]])
    spec = f"--source=array_record:{tmp_path}/a.array_record"
    rest = [f"--out={tmp_path}/a.model", "--vocab_size=320"]
    with pytest.raises(records.Fault, match="record 9 is not UTF-8"):
        train_tokenizer.main([spec, *rest])
    train_tokenizer.main([f"{spec}?on_fault=skip", *rest])
    assert capsys.readouterr().out.endswith("; left out: 1 fault/invalid_utf8\n")


def test_the_command_writes_a_model(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(CODE), newline="")
    command = [sys.executable, "-m", "data.train_tokenizer", f"--source=text:{path}"]
    out = tmp_path / "new" / "b.model"
    done = subprocess.run(
        [*command, f"--out={out}", "--vocab_size=300", "--special=<a>"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pieces" in done.stdout
    opened = tokenizers.load(out)
    text = sources.open_source(f"text:{path}")[0].text
    assert tokenizers.joined_bytes(opened, opened.encode(text)) == text.encode()
    np.testing.assert_array_equal(opened.encode_markup("<a>"), [3])
    bad = subprocess.run([*command, "--out=x.bin", "--vocab_size=300"], capture_output=True)
    assert bad.returncode == 1
    assert bad.stderr.decode().count("\n") == 1
