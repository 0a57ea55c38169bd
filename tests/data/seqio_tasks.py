"""Tasks and a mixture of seqio, as a user's module registers them."""

import functools
import os

import seqio
import tensorflow as tf

WORDS = [f"target {i} of a task" for i in range(12)]


def texts(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(
        {"targets": WORDS, "inputs": [w[::-1] for w in WORDS]}
    )


def tokens(split, shuffle_files, seed=None):
    """Already tokenised: no text is left but what the ids stand for."""
    vocabulary = FEATURES["targets"].vocabulary

    def ids():
        for word in WORDS[:4]:
            yield {"targets": vocabulary.encode(f"only {word}")}

    del split, shuffle_files, seed
    signature = {"targets": tf.TensorSpec([None], tf.int32)}
    return tf.data.Dataset.from_generator(ids, output_signature=signature)


FEATURES = {
    "targets": seqio.Feature(
        seqio.SentencePieceVocabulary(os.environ["TEST_SENTENCEPIECE"]), add_eos=False
    )
}

seqio.TaskRegistry.add(
    "texts",
    source=seqio.FunctionDataSource(texts, splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features=FEATURES,
)
seqio.TaskRegistry.add(
    "tokens",
    source=seqio.FunctionDataSource(tokens, splits=["train"]),
    preprocessors=[],
    output_features=FEATURES,
)
seqio.TaskRegistry.add(
    "records",
    source=seqio.TFExampleDataSource(
        {"train": os.environ["TEST_TFRECORD"]}, {"text": tf.io.FixedLenFeature([], tf.string)}
    ),
    preprocessors=[
        functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
        seqio.preprocessors.tokenize,
    ],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)},
)
seqio.MixtureRegistry.add("both", [("texts", 3), ("tokens", 1)])
seqio.MixtureRegistry.add("only_texts", ["texts"], default_rate=1)
