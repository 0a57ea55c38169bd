"""Weights in: a Hugging Face folder or a GGUF file becomes a config and a parameter tree."""

import pathlib

from data import tokenizers
from rpt import weights_gguf, weights_huggingface, weights_layout
from rpt.model import config as config_lib
from rpt.model import transformer


def load(
    path: str | pathlib.Path, *, dtype: config_lib.Dtype = "float32"
) -> tuple[config_lib.ModelConfig, transformer.Params]:
    """Reads weights of the Llama, Qwen2 or Qwen3 architecture.

    Args:
      path: a folder with config.json and model.safetensors (or its shards), or a .gguf file.
      dtype: of the parameters; also the returned config's (its activations).

    Returns:
      The config, and a tree as `transformer.init` makes it, of numpy arrays.

    Raises:
      FileNotFoundError: nothing there, or a part is missing.
      ValueError: truncated or contradictory files, or a model that is not supported.
    """
    if dtype not in weights_layout.DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(weights_layout.DTYPES)}")
    path = pathlib.Path(path)
    if path.is_dir():
        return weights_huggingface.load(path, dtype)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a Hugging Face folder or a .gguf file")
    if path.suffix != ".gguf":
        raise ValueError(f"{path} is no weights file: give a Hugging Face folder or a .gguf file")
    return weights_gguf.load(path, dtype)


def check_vocabulary(config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer) -> None:
    """Some models pad the embedding, so it may have more rows than the tokenizer has ids.

    Raises:
      ValueError: the tokenizer has ids without an embedding row.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids but the weights embed only "
            f"{config.vocab_size}: they do not belong together"
        )
