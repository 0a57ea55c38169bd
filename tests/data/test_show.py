"""What is shown is the document, whatever it holds, and nothing of it is ever executed."""

import html.parser
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from data import difficulty, records, show, show_html, sources, tokenizers
from tests.data import corpora

TEXT = "caf\u00e9 <script>alert('x')</script> & \"quotes\"\nsecond\x1b[31m line\t\x00 {title}"
TOKENIZER = tokenizers.load("bytes")


class Parsed(html.parser.HTMLParser):
    """Tags, the text of each section's <pre>, titles and classes of its tokens."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.titles, self.classes, self.texts = set(), [], [], []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "pre":
            self._inside = True
            self.texts.append("")
        if "title" in given:
            self.titles.append(given["title"])
            self.classes.append(given["class"])

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(spec, folder of an index): two documents, only the first is indexed."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}) for text in (TEXT, "not indexed")]
    (folder / "a.jsonl").write_text("\n".join(lines))
    tokens = len(TEXT.encode())
    about = difficulty.About(
        source="a",
        documents=1,
        documents_digest="0",
        tokenizer_digest=TOKENIZER.digest(),
        proxy="p",
        proxy_sha256="0",
        header_ids=(),
        seq_len=1024,
        min_context=3,
        shard_documents=10,
    )
    writer = difficulty.Writer(folder / "index", about)
    entropy = np.linspace(0, math.log(16), tokens)
    scores = difficulty.Scores(entropy, -entropy)
    entry = difficulty.Entry(records.document_id(TEXT), scores)
    writer.write_shard([entry], {"scored_tokens": tokens, "flops": 1}, records.Guard())
    writer.finish({})
    return f"jsonl:{folder}/a.jsonl", folder / "index"


def shown(corpus, cuts="", with_index=True, count=2):
    spec, folder = corpus
    index = difficulty.Index(folder, TOKENIZER.digest()) if with_index else None
    source = sources.open_source(spec)
    return list(
        show.documents(source, records.Guard(), TOKENIZER, index, show.Cuts(cuts), 0, count)
    )


def printable(text):
    """TEXT as bytes tokens are shown: every character beyond ASCII is several tokens."""
    text = text.replace("\u00e9", "\\xc3\\xa9").replace("\n", show.NEWLINE + "\n")
    return text.replace("\x1b", "\\x1b").replace("\t", "\\x09").replace("\x00", "\\x00")


@pytest.mark.parametrize("with_index", [True, False])
def test_the_terminal_gets_the_text_and_our_colours_only(corpus, with_index):
    out = show.ansi(shown(corpus, with_index=with_index)[0])
    ours = re.compile(r"\x1b\[(0|1|[34]8;5;\d+)m")
    plain = ours.sub("", out)
    assert plain.split("\n", 1)[1] == printable(TEXT) + "\n"
    assert "\x1b" not in plain
    # No background stays on behind a line's end.
    assert all(line.endswith("\x1b[0m") for line in out.splitlines())


def test_the_page_is_the_text_and_nothing_runs(corpus):
    page = show_html.page("<b>&spec", shown(corpus))
    parsed = Parsed(page)
    assert parsed.texts[0] == printable(TEXT)
    assert not parsed.tags & {"script", "b", "img", "link", "iframe"}
    assert "http" not in page.replace("http-equiv", "")
    assert len(parsed.titles) == len(TEXT.encode()) + len("not indexed")
    place = TEXT.index("<")  # one byte further, because of the accent
    entropy = difficulty.ENTROPY_STEP * round(
        (place + 1) / (len(TEXT.encode()) - 1) * math.log(16) / difficulty.ENTROPY_STEP
    )
    assert parsed.titles[place + 1].split("\n")[:3] == [
        "id 60",
        f"bytes b'<' at {place + 1}",
        f"entropy {entropy:.3f} nats",
    ]
    assert "entropy" not in parsed.titles[-1]


def test_a_token_that_is_a_tag_stays_text():
    tokenizer = tokenizers.ByteTokenizer(("<script>",), None, None)
    source = records.ListSource([records.Record("a<script>b", 1, markup=True)])
    (document,) = show.documents(source, records.Guard(), tokenizer, None, show.Cuts(""), 0, 1)
    assert [token.text for token in document.tokens] == ["a", "<script>", "b"]
    page = show_html.page("x", [document])
    assert "<script" not in page
    assert Parsed(page).texts == ["a<script>b"]


def test_tokens_keep_their_characters_together(corpus):
    tokenizer = tokenizers.train_bpe([TEXT] * 50, 400)
    source = sources.open_source(corpus[0])
    (document,) = show.documents(source, records.Guard(), tokenizer, None, show.Cuts(""), 0, 1)
    assert "".join(token.text for token in document.tokens).startswith("caf\u00e9 <script>")
    assert [token.offset for token in document.tokens] == np.cumsum(
        [0, *(len(token.raw) for token in document.tokens[:-1])]
    ).tolist()


def test_a_band_marks_the_indexed_tokens_in_it(corpus):
    first, second = shown(corpus, cuts=":0.5")
    marked = [place for place, token in enumerate(first.tokens) if token.is_cut]
    assert marked == [
        place for place, t in enumerate(first.tokens) if t.entropy <= 0.5 and place >= 3
    ]
    assert not any(token.is_cut for token in second.tokens)
    assert f"{len(marked)} cuts" in first.summary
    assert Parsed(show_html.page("x", [first])).classes.count("t c") == len(marked)
    assert show.ansi(first).count("\x1b[1;38;5;196m|") == len(marked)


def test_cuts_of_files(corpus, tmp_path):
    path, other = tmp_path / "samples.jsonl", records.document_id("not indexed")
    sample = {"document_id": other, "start": 4, "cuts": [{"cut": 1}, {"cut": 3}], "text": ""}
    lines = [{"about": 1}, sample, {"document_id": other, "cut": 2}]
    path.write_text("\n".join(map(json.dumps, lines)))
    (document,) = shown(corpus, cuts=str(path))
    assert document.number == 1
    assert [i for i, token in enumerate(document.tokens) if token.is_cut] == [2, 5, 7]


def test_documents_that_cannot_be_read_are_left_out_and_counted(tmp_path, capsys):
    raws = [b"first", b"\xff", b"second", b"\xfe"]
    corpora.write_array_record(tmp_path / "a.array_record", raws)
    spec = f"--source=array_record:{tmp_path}/a.array_record"
    with pytest.raises(records.Fault, match="record 1 is not UTF-8"):
        show.main([spec, "--tokenizer=bytes"])
    show.main([f"{spec}?on_fault=skip", "--tokenizer=bytes", "--count=2"])
    out = capsys.readouterr().out
    assert "document 0" in out
    assert "document 2" in out
    # No further than asked for.
    assert out.endswith("left out: 1 fault/invalid_utf8\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cuts.jsonl:1 names no cuts"),
        ('{"document_id": 1, "cuts": 3}', r"cuts.jsonl:1 names no cuts"),
        ('{"x": 1}', "no line with a document_id"),
        ('{"document_id": 1, "cut": 3}', "none of the documents from 0 on has cuts"),
        (None, "neither a band LOW:HIGH nor a file"),
    ],
)
def test_mistakes_are_one_line(corpus, tmp_path, content, message):
    path = tmp_path / "cuts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        shown(corpus, cuts=str(path))


def test_the_command_prints_and_writes_a_page(corpus, tmp_path):
    spec, folder = corpus
    page = tmp_path / "page.html"
    command = [
        *(sys.executable, "-m", "data.show", f"--source={spec}", "--tokenizer=bytes"),
        *(f"--index={folder}", "--cuts=1:2", f"--html={page}", "--count=1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cuts" in done.stdout
    assert Parsed(page.read_text()).texts == [printable(TEXT)]
    bad = subprocess.run([*command[:5], "--cuts=1:2"], capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr == "error: a band of entropy (--cuts=LOW:HIGH) needs an --index\n"
