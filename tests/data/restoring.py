"""What holds of every source: stopped anywhere it goes on exactly, shards are it once an epoch.

Documents are read from the source whenever their turn comes, as those of a large source are.
"""

import collections
import itertools
import json
import random

import numpy as np

from data import documents, pipeline, resharding, tokenizers

BYTES = tokenizers.ByteTokenizer()
STOPS = 50


def check(monkeypatch, open_source, seq_len=48):
    """Both properties, of a source that is opened anew whenever a run would open it.

    Args:
        open_source: opens distinct documents, of several rows of seq_len in all.
    """
    monkeypatch.setattr(documents, "INDEXED_DOCUMENTS", 0)
    goes_on_exactly(lambda: packed([open_source()], seq_len, epochs=1))
    goes_on_exactly(lambda: trunks([open_source()], seq_len, epochs=1))
    shards_are_the_corpus(open_source, seq_len)


def packed(sources, seq_len, **changes):
    options = {"batch_size": 1, "seq_len": seq_len, "seed": 5} | changes
    return pipeline.packed_batches(mixture(sources), BYTES, **options)


def trunks(sources, seq_len, **changes):
    options = {"batch_size": 1, "seq_len": seq_len, "seed": 5, "header_ids": [63]} | changes
    return pipeline.trunk_batches(mixture(sources), BYTES, min_context=6, **options)


def mixture(sources):
    return [pipeline.Mix(source, 1.0 + k, f"source{k}") for k, source in enumerate(sources)]


def flat(batch):
    """A batch as plain lists, look-ahead included, so that == compares all of it."""
    return {
        name: [part.tolist() if isinstance(part, np.ndarray) else part for part in value]
        if isinstance(value, tuple)
        else value.tolist()
        if isinstance(value, np.ndarray)
        else value
        for name, value in vars(batch).items()
    }


def goes_on_exactly(make, most=80):
    """Stopped before any of 50 batches, or of all there are, a stream gives what it would have.

    Args:
        make: opens a stream of at least 30 batches, at its beginning.
    """
    whole, states, batches = make(), [], []
    for _ in range(most):
        states.append(json.dumps(whole.get_state(), sort_keys=True))
        if (batch := next(whole, None)) is None:
            break
        batches.append(flat(batch))
    assert len(batches) >= 30
    stops = random.Random(1).sample(range(len(states)), min(STOPS, len(states)))
    for turn, stop in enumerate(stops):
        # Opened anew now and then, and read to its end; for the rest equal states stand, and a
        # stream that has been elsewhere.
        if fresh := turn % 10 == 0:
            restored = make()
        restored.set_state(json.loads(states[stop]))
        assert json.dumps(restored.get_state(), sort_keys=True) == states[stop]
        ahead = most if fresh else 2
        found = [flat(batch) for batch in itertools.islice(restored, min(ahead, most - stop))]
        assert found == batches[stop : stop + ahead]
        if stop + len(found) < len(states):
            reached = json.dumps(restored.get_state(), sort_keys=True)
            assert reached == states[stop + len(found)]


def pieces_by_hand(record, seq_len):
    """A document's pieces: bos, tokens, eos, cut into rows that overlap by one token."""
    tokens = BYTES.encode_markup(record.text) if record.markup else record.text.encode()
    tokens = [256, *tokens, 257]
    return [tuple(tokens[i : i + seq_len]) for i in range(0, len(tokens) - 1, seq_len - 1)]


def pieces_of(stream, batches=None):
    return [
        tuple(tokens_S[segments_S == number].tolist())
        for batch in itertools.islice(stream, batches)
        for tokens_S, segments_S in zip(batch.tokens_BS, batch.segments_BS)
        for number in range(1, segments_S.max() + 1)
    ]


def shards_are_the_corpus(open_source, seq_len):
    """Of 1, 2, 4 and 8 shards; and of 4, stopped each at its own moment, dealt to 2 and to 8."""
    source = open_source()
    wanted = collections.Counter(
        piece for index in range(len(source)) for piece in pieces_by_hand(source[index], seq_len)
    )

    def shards(count):
        options = {"epochs": 1, "shard_count": count}
        own = [open_source()]
        return [packed(own, seq_len, shard_index=i, **options) for i in range(count)]

    for count in (1, 2, 4, 8):
        assert collections.Counter(p for s in shards(count) for p in pieces_of(s)) == wanted
    four = shards(4)
    before = [piece for k, shard in enumerate(four) for piece in pieces_of(shard, 2 * k + 1)]
    states = [json.loads(json.dumps(shard.get_state())) for shard in four]
    for count in (2, 8):
        found = collections.Counter(before)
        for shard, state in zip(shards(count), resharding.reshard(states, count), strict=True):
            shard.set_state(json.loads(json.dumps(state)))
            found.update(pieces_of(shard))
        assert found == wanted
