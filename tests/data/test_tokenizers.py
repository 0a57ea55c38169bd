"""Tokenizers: bytes in, bytes out, whatever the vocabulary."""

import io
import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import strategies as st

from data import tokenizers, tokenizers_gguf, tokenizers_huggingface
from rpt import fetch

CORPUS = [
    "the cat sat on the mat . the dog sat on the log .",
    "eve is 4 . fay is 2 + eve . so fay is 6 .",
    "naïve café, 漢字 🤗 here there where",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TRICKY = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\t", "the", "cat", "'s", "7", "42", "é", "🤗", "<think>", "."]
    )
).map("".join)


def bpe() -> tokenizers.HuggingFaceTokenizer:
    return tokenizers.train_bpe(CORPUS * 5, 320)


def sentencepiece_model(**options) -> tokenizers.SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5),
        model_writer=model,
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<think>", "</think>"],
        minloglevel=2,
        **options,
    )
    return tokenizers.SentencePieceTokenizer(model.getvalue())


BPE = bpe()
PIECES = sentencepiece_model(add_dummy_prefix=False)
PREFIXED = sentencepiece_model(add_dummy_prefix=True)
EXACT = {"bytes": tokenizers.ByteTokenizer(), "bpe": BPE, "sentencepiece": PIECES}


@pytest.mark.parametrize("name", EXACT)
@hypothesis.given(text=TEXT | TRICKY)
@hypothesis.settings(max_examples=150, deadline=None)
def test_token_bytes_join_to_the_text(name, text):
    # SentencePiece has its own use for U+2581 and cannot hold NUL.
    hypothesis.assume(name != "sentencepiece" or not set(text) & {"\u2581", "\0"})
    tokenizer = EXACT[name]
    for encode in (tokenizer.encode, tokenizer.encode_markup):
        ids = encode(text)
        assert ids.dtype == np.int32
        assert tokenizers.joined_bytes(tokenizer, ids) == text.encode()
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", EXACT)
def test_markup_is_special_only_on_request(name):
    tokenizer = EXACT[name]
    text = "so fay is<think> fay 6</think> 6 ."
    plain, markup = tokenizer.encode(text), tokenizer.encode_markup(text)
    assert not tokenizer.special_ids & set(plain.tolist())
    found = [id for id in markup.tolist() if id in tokenizer.special_ids]
    assert [tokenizer.token_bytes(id) for id in found] == [b"<think>", b"</think>"]


@pytest.mark.parametrize("name", EXACT)
def test_tokens_can_split_a_character(name):
    tokenizer = EXACT[name]
    ids = tokenizer.encode("𓀀")
    pieces = [tokenizer.token_bytes(id) for id in ids.tolist()]
    assert len(pieces) == 4
    assert b"".join(pieces) == "𓀀".encode()
    assert tokenizer.decode(ids[:2]) == "\ufffd"


@pytest.mark.parametrize("name", [*EXACT, "prefixed"])
def test_saved_and_loaded_is_the_same(name, tmp_path):
    tokenizer = {**EXACT, "prefixed": PREFIXED}[name]
    tokenizer.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.digest() == tokenizer.digest()
    assert (again.bos_id, again.eos_id, again.vocab_size, again.special_ids) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.vocab_size,
        tokenizer.special_ids,
    )
    np.testing.assert_array_equal(
        again.encode_markup(CORPUS[2]), tokenizer.encode_markup(CORPUS[2])
    )


def test_digests_differ():
    others = [bpe(), tokenizers.train_bpe(CORPUS, 300), PIECES, PREFIXED]
    others += [tokenizers.ByteTokenizer(), tokenizers.ByteTokenizer(("<x>",), None, None)]
    assert len({tokenizer.digest() for tokenizer in others}) == len(others)
    assert bpe().digest() == BPE.digest()


def test_byte_tokenizer_ids():
    tokenizer = tokenizers.load("bytes")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (260, 256, 257)
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.encode_markup("a<think></think>").tolist() == [97, 258, 259]


def test_training_is_deterministic_across_processes():
    code = (
        "import sys, json; from data import tokenizers;"
        "print(tokenizers.train_bpe(json.load(sys.stdin), 320).digest())"
    )
    for hash_seed, texts in (("1", CORPUS * 5), ("2", CORPUS[::-1] * 5)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=pathlib.Path(tokenizers.__file__).parents[1],
        )
        assert done.stdout.strip() == BPE.digest()


def test_trained_words_carry_their_leading_space():
    ids = BPE.encode(" the cat sat")
    assert [BPE.token_bytes(id) for id in ids.tolist()] == [b" the", b" cat", b" sat"]
    assert (BPE.bos_id, BPE.eos_id) == (0, 1)


@hypothesis.given(
    st.lists(st.sampled_from(["", " the", " cat", "<think>", " 42", ".", " é", "  "]))
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_word_by_word_encoding_equals_the_library(words):
    text = "".join(words)
    library = hf.Tokenizer.from_str(BPE.json_text)
    assert BPE.encode_markup(text).tolist() == library.encode(text).ids
    library.encode_special_tokens = True
    assert BPE.encode(text).tolist() == library.encode(text).ids


def test_ordinary_added_token_is_markup_but_spaces_are_vocabulary():
    library = hf.Tokenizer.from_str(BPE.json_text)
    library.add_tokens([hf.AddedToken("<tool>", special=False), hf.AddedToken("    ")])
    tokenizer = tokenizers.HuggingFaceTokenizer(library.to_str(), {})
    tool, spaces = library.token_to_id("<tool>"), library.token_to_id("    ")
    assert tool in tokenizer.special_ids
    assert tool not in tokenizer.encode("a<tool>")
    assert tool in tokenizer.encode_markup("a<tool>")
    assert spaces not in tokenizer.special_ids
    assert spaces in tokenizer.encode("a    b")


def metaspace_json() -> str:
    """Llama 2's kind of tokenizer.json: prepended U+2581, byte fallback."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    for piece in ("\u2581", "h", "i", "hi", "\u2581hi"):
        vocab[piece] = len(vocab)
    merges = [("h", "i"), ("\u2581", "hi")]
    model = hf.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True)
    library = hf.Tokenizer(model)
    library.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.Prepend("\u2581"), hf.normalizers.Replace(" ", "\u2581")]
    )
    library.decoder = hf.decoders.Sequence(
        [hf.decoders.Replace("\u2581", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse()]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library.to_str()


def test_metaspace_json_keeps_its_dummy_prefix_and_falls_back_to_bytes(tmp_path):
    (tmp_path / "tokenizer.json").write_text(metaspace_json())
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizers.joined_bytes(tokenizer, tokenizer.encode("hi hié")) == " hi hié".encode()
    assert tokenizer.token_bytes(3 + 0xC3) == b"\xc3"


def test_unigram_json_does_not_find_special_strings_in_text():
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((char, -3.0) for char in "\u2581<>/sab")]
    library = hf.Tokenizer(hf.models.Unigram(vocab, unk_id=0))
    library.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme="never")
    library.decoder = hf.decoders.Metaspace(prepend_scheme="never")
    library.add_special_tokens(["</s>"])
    tokenizer = tokenizers.HuggingFaceTokenizer(library.to_str(), {"eos_token": "</s>"})
    assert 1 not in tokenizer.encode("a</s>b")
    assert tokenizers.joined_bytes(tokenizer, tokenizer.encode("a</s>b")) == b"a</s>b"
    assert 1 in tokenizer.encode_markup("a</s>b")


def test_sentencepiece_dummy_prefix_only_at_the_start():
    text = "the cat<think>the cat"
    assert tokenizers.joined_bytes(PREFIXED, PREFIXED.encode(text)) == b" " + text.encode()
    assert tokenizers.joined_bytes(PREFIXED, PREFIXED.encode_markup(text)) == b" " + text.encode()


def test_gguf_fields_give_the_same_ids_as_the_json():
    spec = json.loads(BPE.json_text)
    vocab = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    fields = {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.tokens": vocab,
        "ggml.token_type": [3 if id in BPE.special_ids else 1 for id in range(len(vocab))],
        "ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
        "chat_template": "{{ messages }}",
    }
    tokenizer = tokenizers_gguf.from_fields(fields)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.special_ids == BPE.special_ids
    assert tokenizer.config["chat_template"] == "{{ messages }}"
    for text in (*CORPUS, "<think>a  b\n\n 42</think>"):
        np.testing.assert_array_equal(tokenizer.encode(text), BPE.encode(text))
        np.testing.assert_array_equal(tokenizer.encode_markup(text), BPE.encode_markup(text))
    with pytest.raises(ValueError, match="unknown GGUF pre-tokenizer 'x'"):
        tokenizers_gguf.from_fields({**fields, "ggml.pre": "x"})
    with pytest.raises(ValueError, match=r"use the model's tokenizer\.json"):
        tokenizers_gguf.from_fields({**fields, "ggml.model": "llama"})


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("smollm", "it's 123", ["it", "'s", "\u0120", "1", "2", "3"]),
        ("gpt-2", "it's 123", ["it", "'s", "\u0120123"]),
        (
            "llama-bpe",
            "IT'S 12345\n\n x",
            ["IT", "'S", "\u0120", "123", "45", "\u010a\u010a", "\u0120x"],
        ),
        ("qwen2", "a 12", ["a", "\u0120", "1", "2"]),
        ("default", "a.b 1234", ["a", ".", "b", "\u0120", "123", "4"]),
    ],
)
def test_gguf_pre_tokenizers_split_as_named(pre, text, words):
    chars = tokenizers_huggingface.byte_level_chars()
    fields = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": list(chars),
        "ggml.token_type": [1] * 256,
        "ggml.merges": [],
    }
    library = hf.Tokenizer.from_str(tokenizers_gguf.from_fields(fields).json_text)
    assert [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)] == words


def test_byte_level_chars_are_the_library_alphabet():
    chars = tokenizers_huggingface.byte_level_chars()
    assert set(chars) == set(hf.pre_tokenizers.ByteLevel.alphabet())
    assert (chars[ord(" ")], chars[ord("!")]) == ("\u0120", "!")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"not a readable tokenizer\.json"),
        ("x.model", b"nonsense", "not a SentencePiece model"),
        ("x.gguf", b"nonsense", "not a readable GGUF"),
        ("x.txt", b"text", "is no tokenizer file"),
        ("bytes_tokenizer.json", b"[]", "not a saved byte tokenizer"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        tokenizers.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_other_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer in the folder"):
        tokenizers.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        tokenizers.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="vocab_size 100 is too small"):
        tokenizers.train_bpe(CORPUS, 100)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        BPE.token_bytes(-1)
    with pytest.raises(ValueError, match="WordLevel"):
        tokenizers.HuggingFaceTokenizer(
            hf.Tokenizer(hf.models.WordLevel({"a": 0}, "a")).to_str(), {}
        )


@pytest.mark.smollm2
def test_smollm2_gguf(tmp_path):
    try:
        path = fetch.path("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer = tokenizers.load(path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    text = "<|im_start|>user\nHello, it's 1234 naïve 🤗!\n\n"
    assert tokenizer.encode_markup(text)[:3].tolist() == [1, 4093, 198]
    for encode in (tokenizer.encode, tokenizer.encode_markup):
        assert tokenizers.joined_bytes(tokenizer, encode(text)) == text.encode()
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path).digest() == tokenizer.digest()
    assert len(tokenizer.encode_markup("</think>")) == 3
