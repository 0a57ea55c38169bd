"""Writes a folder that `transformers` opens with AutoModelForCausalLM.

Examples:
  python -m rpt.export --workdir=runs/mini --out=exported
  python -m rpt.export --weights=model.gguf --out=exported --dtype=bfloat16

The folder holds config.json, model.safetensors and the tokenizer's files, and appears whole or
not at all. The architecture is Qwen3ForCausalLM for models with qk-norm, Qwen2ForCausalLM for
models with biases on query, key and value, and LlamaForCausalLM for the others.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence

import safetensors.numpy
from absl import app, flags

from data import tokenizers
from rpt import hosts, weights, weights_huggingface, weights_layout
from rpt.model import config as config_lib
from rpt.model import transformer


def export(
    folder: str | pathlib.Path,
    config: config_lib.ModelConfig,
    params: transformer.Params,
    tokenizer: tokenizers.Tokenizer,
    *,
    dtype: config_lib.Dtype = "float32",
    max_positions: int = 8192,
) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into a new folder.

    Args:
      folder: absent or empty; its parents are created.
      config: of the model.
      params: its parameters, addressable by this process.
      tokenizer: `save` decides which tokenizer files there are.
      dtype: of the tensors in the file.
      max_positions: written into config.json; the model itself knows no limit.

    Raises:
      ValueError: the folder is not empty, the tokenizer does not fit, or `transformers` has no
        such architecture.
      OSError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    _refuse_occupied(folder)
    weights.check_vocabulary(config, tokenizer)
    raw = weights_huggingface.config_to_json(
        config, max_positions=max_positions, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id
    )
    # transformers 5 prefers "dtype" and still reads this older key.
    raw["torch_dtype"] = dtype
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-partial-"))
    try:
        tokenizer.save(partial)
        config_text = json.dumps(raw, indent=2) + "\n"
        (partial / weights_huggingface.CONFIG_FILE).write_text(config_text, encoding="utf-8")
        # transformers refuses files that do not name the framework of the layout.
        safetensors.numpy.save_file(
            dict(weights_layout.disassemble(config, params, dtype)),
            partial / weights_huggingface.WEIGHTS_FILE,
            metadata={"format": "pt"},
        )
        _make_readable(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _refuse_occupied(folder: pathlib.Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder that is absent or empty")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a folder that is absent or empty")


def _make_readable(folder: pathlib.Path) -> None:
    """mkdtemp and safetensors make private files; others may read what is exported."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)


def _define_flags() -> None:
    """Not at import: other commands that import this module have flags of the same names."""
    flags.DEFINE_string("workdir", "", "Run whose checkpoint is exported.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the last.")
    flags.DEFINE_string(
        "weights", "", "Instead of --workdir: a GGUF file or Hugging Face folder to write again."
    )
    flags.DEFINE_string("out", "", "Folder to create; it must be absent or empty.")
    flags.DEFINE_enum("dtype", "float32", sorted(weights_layout.DTYPES), "Type in the file.")
    flags.DEFINE_integer(
        "max_positions", 8192, "max_position_embeddings of config.json; servers cap contexts by it."
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if bool(values.workdir) == bool(values.weights) or not values.out:
        raise app.UsageError("give --out and either --workdir or --weights")
    try:
        # Before minutes of reading.
        hosts.refuse("rpt.export")
        _refuse_occupied(pathlib.Path(values.out))
        if values.weights:
            config, params = weights.load(values.weights)
            tokenizer = tokenizers.load(values.weights)
        else:
            # Orbax takes seconds to import.
            from rpt import loading

            run = loading.load_run(pathlib.Path(values.workdir), values.step)
            config, params, tokenizer = run.model, run.params, run.tokenizer
        export(
            values.out,
            config,
            params,
            tokenizer,
            dtype="bfloat16" if values.dtype == "bfloat16" else "float32",
            max_positions=values.max_positions,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"rpt.export: {error}")
    print(values.out)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
