"""Transforms: what stays, what is counted, and that a view is a source like any other."""

import random
import unicodedata
import urllib.parse

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from data import (
    decontamination,
    deduplication,
    prepare,
    records,
    sources,
    splits,
    transforms,
)
from tests.data import corpora


def texts_of(source):
    return [source[index].text for index in range(len(source))]


def applied(texts, **options):
    given = {name: str(value) for name, value in options.items()}
    source = transforms.take(given, "these")(records.from_texts(texts), records.Guard())
    assert not given
    return source


def vocabulary(count):
    return [f"word{i}" for i in range(count)]


def variants(seed, count=60, words=60):
    """Texts of which many are others with some words changed."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(vocabulary(500), k=words)) for _ in range(count // 2)]
    while len(texts) < count:
        changed = rng.choice(texts).split()
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            changed[rng.randrange(words)] = f"new{rng.randrange(10**6)}"
        texts.append(" ".join(changed))
    rng.shuffle(texts)
    return texts


# ---- text and filters ----------------------------------------------------------------------------


def test_a_rewritten_text_has_the_id_of_what_it_became():
    decomposed, plain = "cafe\u0301 au lait\x00", "plain text\twith\r\nlines"
    source = applied([decomposed, plain], unicode="NFC", control="strip")
    assert texts_of(source) == ["caf\u00e9 au lait", plain]
    assert source[0].document_id == records.document_id("caf\u00e9 au lait")
    assert source[1].document_id == records.document_id(plain)
    assert source.counts == {"noted/rewritten": 1}


@pytest.mark.parametrize("form", transforms.FORMS)
def test_unicode_forms_are_those_of_the_standard(form):
    text = "ﬁ cafe\u0301 \u00e9 \u2460"
    assert texts_of(applied([text], unicode=form)) == [unicodedata.normalize(form, text)]


def test_filters_leave_out_and_count_by_reason():
    good = "twelve letters and more of them"
    texts = [good, "a\x07b and so on", "12 34 56 78 90 !!", "ab", "x " * 30, " \x00 ", "é" * 12]
    source = applied(texts, control="drop", min_letters=0.5, min_chars=4, max_chars=40)
    assert texts_of(source) == [good, "é" * 12]
    assert source.counts == {
        "filtered/control": 2,
        "filtered/letters": 1,
        "filtered/too_short": 1,
        "filtered/too_long": 1,
    }
    by_words = applied(["a b", "a b c", "a b c d"], min_words=3, max_words=3)
    assert texts_of(by_words) == ["a b c"]
    # Stripped first: nothing is left of the text.
    assert applied([good, "\x00\x01"], control="strip").counts["filtered/empty"] == 1


def test_the_counts_of_the_source_are_kept():
    source = records.ListSource([records.of_text("a b c"), records.of_text("a")], {"fault/x": 3})
    kept = transforms.apply(source, transforms.Settings(min_words=2), "these", records.Guard())
    assert kept.counts == {"fault/x": 3, "filtered/too_short": 1}


def test_no_option_is_no_view():
    source = records.from_texts(["a"])
    assert transforms.take({"field": "text"}, "these")(source, records.Guard()) is source


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unicode": "NFX"}, "unicode must be one of NFC"),
        ({"control": "x"}, "control must be one of keep, strip, drop"),
        ({"duplicates": "all"}, "duplicates must be one of"),
        ({"min_letters": "2"}, r"min_letters must lie in \[0, 1\]"),
        ({"min_chars": "x"}, "min_chars must be whole, not 'x'"),
        ({"min_words": "5", "max_words": "4"}, "no document has min_words=5"),
        ({"duplicates": "near", "near_threshold": "0"}, "near_threshold must lie"),
        ({"duplicates": "near", "near_threshold": "0.01"}, "too low"),
        ({"split_seed": "1"}, "needs split=train"),
        ({"min_words": "1000"}, r"no document of 'these' is left .*2 filtered/too_short"),
        ({"decontaminate": "pydoc", "decontaminate_words": "7"}, "at least 8"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        applied(["some words", "more of them"], **options)
    assert "\n" not in str(caught.value)


def test_a_labelled_text_is_not_rewritten():
    labelled = records.Record("cafe\u0301 is 1", 1, labels=((2, "answer"),))
    source = records.ListSource([labelled])
    with pytest.raises(ValueError, match="labels count words"):
        transforms.apply(source, transforms.Settings(unicode="NFC"), "these", records.Guard())


class Broken(records.ListSource):
    """The second of its documents cannot be read."""

    def __getitem__(self, index):
        if index == 1:
            raise records.Fault("vanished", "some.txt", "is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "options", [{"min_chars": "1"}, {"split": "train", "test": "0.3", "validation": "0.3"}]
)
def test_a_fault_is_raised_or_met_and_counted(options):
    source = Broken(records.from_texts([f"text {i}" for i in range(9)]).records, {"fault/x": 1})
    apply = transforms.take({**options}, "these")
    with pytest.raises(records.Fault, match="is gone"):
        apply(source, records.Guard())
    guard = records.Guard("skip")
    kept = apply(source, guard)
    assert [reason for reason, _, _ in guard.faults] == ["vanished"]
    assert kept.counts["fault/vanished"] == kept.counts["fault/x"] == 1
    assert "text 1" not in texts_of(kept)
    assert len(kept) + kept.counts.get("other_splits", 0) == 8


class Vanishing:
    """Its second document can be read once."""

    def __init__(self, texts):
        self.records, self.counts, self.reads = records.from_texts(texts), {}, 0

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.reads += index == 1
        if index == 1 and self.reads > 1:
            raise records.Fault("vanished", "some.txt", "is gone")
        return self.records[index]

    def digest(self):
        return self.records.digest()


@pytest.mark.parametrize("chain", [{"duplicates": "near"}, {"min_chars": "1", "split": "train"}])
def test_a_document_that_vanishes_between_two_passes_is_met_by_the_guard(chain):
    letters = "a b c d e f g h i j k l m n o p q r s t"
    texts = [letters, f"{letters} u", *(f"text number {i}" for i in range(30))]

    def applied_to(guard):
        return transforms.take({**chain}, "these")(Vanishing(texts), guard)

    with pytest.raises(records.Fault, match="is gone"):
        applied_to(records.Guard())
    kept = applied_to(guard := records.Guard("skip"))
    read = [record.text for _, record in records.readable(kept, guard)]
    assert [reason for reason, _, _ in guard.faults] == ["vanished"]
    counted = sum(records.left_out(kept.counts).values())
    assert len(kept) + counted == len(texts)
    assert texts[1] not in read


def test_a_benchmark_is_read_by_its_own_policy(tmp_path):
    question = "If Ann has 3 apples, and Bob has 4 more than Ann: how many do they have together?"
    raws = [question.encode(), b"\xff", b"short"]
    corpora.write_array_record(tmp_path / "a.array_record", raws)
    (tmp_path / "corpus.txt").write_text("clean text\n\n" + question)

    def opened(options):
        benchmark = urllib.parse.quote(f"array_record:{tmp_path}/a.array_record{options}")
        spec = f"text:{tmp_path}/corpus.txt?separator=blank&decontaminate={benchmark}"
        return sources.open_source(spec)

    with pytest.raises(records.Fault, match=r"a\.array_record: record 1 is not UTF-8"):
        opened("")
    assert opened("?on_fault=skip").counts == {
        "contaminated": 1,
        "noted/benchmark/fault/invalid_utf8": 1,
        "noted/benchmark/too_short": 1,
    }


def test_splits_of_splits_add_up(tmp_path):
    texts = [" ".join(f"w{i}x{k}" for k in range(20)) for i in range(100)]
    corpora.write_jsonl(tmp_path / "a.jsonl", texts)
    half = "split=train&test=0.5&validation=0"
    prepare.prepare(f"jsonl:{tmp_path}/a.jsonl?{half}", tmp_path / "out")
    again = sources.open_source(f"prepared:{tmp_path}/out?{half}&split_seed=1")
    assert 10 < len(again) < 40
    assert len(again) + again.counts["other_splits"] == 100


# ---- duplicates ----------------------------------------------------------------------------------


def test_the_first_of_equal_texts_stays():
    texts = ["b  c", "a", "b c", "cafe\u0301", "caf\u00e9", "a\n", "B c"]
    source = applied(texts, duplicates="exact")
    assert texts_of(source) == ["b  c", "a", "cafe\u0301", "B c"]
    assert source.counts == {"duplicates/exact": 3}


def shingles_by_hand(text):
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def kept_by_hand(texts, threshold):
    kept = []
    for text in texts:
        own = shingles_by_hand(text)
        near = [
            len(own & other) / len(own | other) >= threshold
            for other in map(shingles_by_hand, kept)
        ]
        if not any(near):
            kept.append(text)
    return kept


@pytest.mark.parametrize("threshold", [0.6, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(seed, threshold):
    texts = variants(seed)
    source = applied(texts, duplicates="near", near_threshold=threshold)
    expected = kept_by_hand(texts, threshold)
    assert 20 < len(expected) < 50
    assert texts_of(source) == expected
    assert sum(source.counts.values()) == len(texts) - len(expected)


def duplicates_and_readings(texts):
    """Which are dropped as near-duplicates, and how many were read again to find out."""
    sketches = deduplication.Sketches(len(texts), 0.8)
    for index, text in enumerate(texts):
        sketches.add(index, text)
    read = []

    def text_of(index):
        read.append(index)
        return texts[index]

    return sketches.duplicates(np.arange(len(texts)), text_of), len(read)


def test_a_template_repeated_a_thousand_times_is_cheap():
    """Chains of dropped documents are passed over, not walked again by each."""
    base = vocabulary(100)
    dropped, readings = duplicates_and_readings(
        [" ".join([*base, f"number{i}"]) for i in range(1000)]
    )
    assert dropped.tolist() == [False] + [True] * 999
    assert readings == 1000


def test_a_template_with_little_of_its_own_is_compared_by_sketches():
    """Many pairs share a band; few are worth reading."""
    template = " ".join(vocabulary(12))
    texts = [f"{template} own{i} own{i * i + 7} own{3 * i} own{i + 99} own{-i}" for i in range(300)]
    dropped, readings = duplicates_and_readings(texts)
    assert not dropped.any()
    assert readings < 100


def test_one_byte_per_permutation_estimates_the_similarity():
    texts = variants(0)
    sketches = deduplication.Sketches(len(texts), 0.8)
    for index, text in enumerate(texts):
        sketches.add(index, text)
    errors = []
    for i in range(len(texts)):
        for j in range(i):
            true = deduplication.jaccard(*(deduplication.shingles(texts[k]) for k in (i, j)))
            if true > 0.2:
                errors.append((sketches._bytes[i] == sketches._bytes[j]).mean() - true)
    assert len(errors) > 30
    assert np.abs(errors).max() < 0.2
    assert abs(np.mean(errors)) < 0.03


def test_bands_find_pairs_at_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.95, 1.0):
        count, rows = deduplication.bands(threshold)
        assert count * rows <= 128
        assert 1 - (1 - threshold**rows) ** count >= 0.999
    assert deduplication.bands(0.8) == (25, 5)


def test_words_of_scripts_without_spaces():
    assert deduplication.words("Don't STOP, naïve_1!") == ["don", "t", "stop", "naïve_1"]
    assert deduplication.words("漢字とkana") == ["漢", "字", "と", "kana"]
    assert deduplication.words("한국어 текст") == ["한국어", "текст"]


# ---- decontamination -----------------------------------------------------------------------------


def runs_by_hand(text, length):
    words = text.lower().split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(strategies.randoms(use_true_random=False))
def test_contamination_is_a_shared_run(rng):
    words = ["a", "b"]
    lengths = [rng.randint(0, 40) for _ in range(4)]
    benchmark = [" ".join(rng.choices(words, k=n)) for n in lengths]
    hypothesis.assume(max(lengths) >= 8)
    found = decontamination.Benchmark(benchmark)
    assert found.ignored == sum(n < 8 for n in lengths)
    for _ in range(20):
        text = " ".join(rng.choices(["a", "b", "A", "b", "z"], k=rng.randint(0, 60)))
        expected = any(
            runs_by_hand(text, min(n, 13)) & runs_by_hand(item, min(n, 13))
            for item, n in zip(benchmark, lengths)
            if n >= 8
        )
        assert found.touches(text) == expected


def test_a_spec_names_the_benchmark(tmp_path):
    question = "If Ann has 3 apples, and Bob has 4 more than Ann: how many do they have together?"
    (tmp_path / "benchmark.txt").write_text(question + "\n\nshort one\n")
    copy = "seen: if ann has 3 apples and bob has 4 more than ann how many do they have today"
    (tmp_path / "corpus.txt").write_text("clean text\n\n" + copy)
    benchmark = urllib.parse.quote(f"text:{tmp_path}/benchmark.txt?separator=blank")
    spec = f"text:{tmp_path}/corpus.txt?separator=blank&decontaminate={benchmark}"
    source = sources.open_source(spec)
    assert texts_of(source) == ["clean text"]
    assert source.counts == {"contaminated": 1, "noted/benchmark/too_short": 1}


# ---- splits and chains ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_are_disjoint_whole_and_their_overlap_is_counted(seed):
    texts = variants(seed, count=200)
    options = {"split_seed": seed, "validation": 0.2, "test": 0.2}
    parts = {name: applied(texts, split=name, **options) for name in splits.NAMES}
    assert sorted(t for part in parts.values() for t in texts_of(part)) == sorted(texts)
    for name in ("validation", "test"):
        held_out = texts_of(parts[name])
        assert parts[name].counts["noted/split/words"] == sum(len(t.split()) for t in held_out)
        assert parts[name].counts["noted/split/words_covered_by_train"] == 0
        assert splits.covered_share(held_out, texts_of(parts["train"])) == 0
        assert parts[name].counts["other_splits"] == len(texts) - len(held_out)


def test_steps_come_in_their_order():
    words = vocabulary(40)
    first, second = " ".join(words), " ".join([*words[:39], "other"])
    benchmark = " ".join(words[25:40])
    settings = transforms.Settings(duplicates="near", decontaminate="x")
    with pytest.MonkeyPatch.context() as patch:
        opened = records.from_texts([benchmark]), records.Guard()
        patch.setattr(sources, "open_guarded", lambda spec: opened)
        source = records.from_texts([first, second, "\x00 something else"])
        # The first stays as the first of its kind, and then goes as a benchmark's.
        kept = transforms.apply(source, settings, "these", records.Guard())
        assert texts_of(kept) == ["\x00 something else"]
        assert kept.counts == {"duplicates/near": 1, "contaminated": 1}


def test_a_chain_of_everything_counts_every_document():
    texts = [*variants(3, count=80), "x", "cafe\u0301 " * 30, "caf\u00e9 " * 30]
    chain = {"unicode": "NFC", "min_words": 3, "duplicates": "near", "split": "train"}
    source = applied(texts, **chain, validation=0.1, test=0.1)
    assert {"filtered/too_short", "duplicates/exact", "duplicates/near"} <= source.counts.keys()
    assert len(source) + sum(records.left_out(source.counts).values()) == len(texts)
    assert records.noted(source.counts) == {"rewritten": 1}
