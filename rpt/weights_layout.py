"""Where each parameter lives: our tree, Hugging Face's tensor names, and GGUF's.

Both files store one tensor per layer and matrices as [out, in]; our tree stacks the layers and
stores [in, out] with the heads split off. Letters as in rpt/model/transformer.py.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from rpt.model import config as config_lib
from rpt.model import transformer

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter.

    Fields:
      path: keys in the parameter tree.
      huggingface: tensor name in a Hugging Face checkpoint; in a layer, what follows its number.
      gguf: the same for GGUF.
      shape: our shape, without the leading layer axis.
      transposed: the file holds [out, in], both possibly products of ours.
      layered: one tensor per layer.
    """

    path: tuple[str, ...]
    huggingface: str
    gguf: str
    shape: tuple[int, ...]
    transposed: bool = False
    layered: bool = True

    @property
    def split(self) -> int:
        """How many leading axes of `shape` are the input side of a matrix."""
        return 2 if self.path[-1] == "output" else 1

    @property
    def file_shape(self) -> tuple[int, ...]:
        if not self.transposed:
            # Biases of the projections are stored flat; embedding and head as they are.
            return self.shape if not self.layered else (int(np.prod(self.shape)),)
        rows, columns = np.prod(self.shape[: self.split]), np.prod(self.shape[self.split :])
        return (int(columns), int(rows))

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        return (tensor.T if self.transposed else tensor).reshape(self.shape)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        if self.transposed:
            return np.ascontiguousarray(array.reshape(self.file_shape[::-1]).T)
        return np.ascontiguousarray(array.reshape(self.file_shape))


def entries(config: config_lib.ModelConfig) -> list[Entry]:
    """All parameters of a model, in the order in which a checkpoint lists them."""
    V, D, F = config.vocab_size, config.width, config.ff_width
    N, K, H = config.num_heads, config.num_kv_heads, config.head_width
    attention = ("layers", "attention")
    found = [
        Entry(("embedding",), "model.embed_tokens.weight", "token_embd.weight", (V, D),
              layered=False),
        Entry(("layers", "attention_norm", "scale"), "input_layernorm.weight",
              "attn_norm.weight", (D,)),
    ]  # fmt: skip
    for name, short, heads in (("query", "q", N), ("key", "k", K), ("value", "v", K)):
        huggingface, gguf = f"self_attn.{short}_proj", f"attn_{short}"
        found.append(
            Entry(
                (*attention, name), f"{huggingface}.weight", f"{gguf}.weight", (D, heads, H), True
            )
        )
        if config.qkv_bias:
            path = (*attention, f"{name}_bias")
            found.append(Entry(path, f"{huggingface}.bias", f"{gguf}.bias", (heads, H)))
        if config.qk_norm and name != "value":
            path = (*attention, f"{name}_norm", "scale")
            found.append(Entry(path, f"self_attn.{short}_norm.weight", f"{gguf}_norm.weight", (H,)))
    found += [
        Entry((*attention, "output"), "self_attn.o_proj.weight", "attn_output.weight",
              (N, H, D), True),
        Entry(("layers", "ff_norm", "scale"), "post_attention_layernorm.weight",
              "ffn_norm.weight", (D,)),
        Entry(("layers", "ff", "gate"), "mlp.gate_proj.weight", "ffn_gate.weight", (D, F), True),
        Entry(("layers", "ff", "up"), "mlp.up_proj.weight", "ffn_up.weight", (D, F), True),
        Entry(("layers", "ff", "down"), "mlp.down_proj.weight", "ffn_down.weight", (F, D), True),
        Entry(("final_norm", "scale"), "model.norm.weight", "output_norm.weight", (D,),
              layered=False),
    ]  # fmt: skip
    if not config.tied_head:
        found.append(Entry(("head",), "lm_head.weight", "output.weight", (V, D), layered=False))
    return found


def huggingface_names(config: config_lib.ModelConfig, entry: Entry) -> list[str]:
    """One name, or one for each layer."""
    return _names(config, entry.huggingface, "model.layers", entry.layered)


def gguf_names(config: config_lib.ModelConfig, entry: Entry) -> list[str]:
    """One name, or one for each layer."""
    return _names(config, entry.gguf, "blk", entry.layered)


def _names(config: config_lib.ModelConfig, name: str, prefix: str, layered: bool) -> list[str]:
    if not layered:
        return [name]
    return [f"{prefix}.{layer}.{name}" for layer in range(config.num_layers)]


def assemble(
    config: config_lib.ModelConfig,
    names: Callable[[config_lib.ModelConfig, Entry], list[str]],
    file_shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, Entry], np.ndarray],
    *,
    where: str,
    dtype: str,
) -> transformer.Params:
    """Fills a parameter tree tensor by tensor, after every name and shape has been checked.

    Args:
      config: the model that the file should hold.
      names: an entry's tensor names in this kind of file.
      file_shapes: shape of every tensor of the file.
      read: reads one tensor, of `entry.file_shape`.
      where: the file, for messages.
      dtype: of the parameters.

    Raises:
      ValueError: missing or unexpected tensors, or a shape that contradicts the config.
    """
    table = entries(config)
    _check(where, {n: e for e in table for n in names(config, e)}, file_shapes)
    params: dict = {}
    for entry in table:
        entry_names = names(config, entry)
        stack = np.empty((len(entry_names), *entry.shape), DTYPES[dtype])
        for slot, name in zip(stack, entry_names, strict=True):
            slot[...] = entry.from_file(read(name, entry))
        node = params
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = stack if entry.layered else stack[0]
    return params


def disassemble(
    config: config_lib.ModelConfig, params: transformer.Params, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, tensor) of every parameter."""
    for entry in entries(config):
        array = params
        for key in entry.path:
            array = array[key]
        stack = np.asarray(array).astype(DTYPES[dtype], copy=False)
        names = huggingface_names(config, entry)
        for name, part in zip(names, stack if entry.layered else stack[None], strict=True):
            yield name, entry.to_file(part)


def _check(
    where: str, expected: Mapping[str, Entry], file_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for what, names in (
        ("lacks", expected.keys() - file_shapes.keys()),
        ("has unexpected", file_shapes.keys() - expected.keys()),
    ):
        if names:
            first = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(f"{where} {what} {len(names)} tensor(s) for its config: {first}")
    for name, entry in expected.items():
        if file_shapes[name] != entry.file_shape:
            raise ValueError(
                f"{where}: {name} has shape {file_shapes[name]}, "
                f"but its config says {entry.file_shape}"
            )
