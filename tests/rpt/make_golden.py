"""Makes tests/rpt/fixtures: tiny random models of `transformers`, with their logits.

Run once, in an environment with torch and transformers (the `transformers` extra):

    python tests/rpt/make_golden.py

The models are far from their initialisation on purpose: attention is sharp, norms and biases are
uneven, and the original contexts of the rope scalings are short, so that each part shows in the
logits. Seeds are fixed, the files change only with the versions of the libraries.
"""

import pathlib

import numpy as np
import torch
import transformers

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
LENGTH = 48
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
}


def configs() -> dict[str, transformers.PreTrainedConfig]:
    plain = {"rope_type": "default", "rope_theta": 1000.0}
    return {
        "llama3": transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-5, rope_parameters=LLAMA3),
        "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters=plain),
        "qwen2_yarn": transformers.Qwen2Config(**SIZES, rope_parameters=YARN),
        # A head width that is not width / heads.
        "qwen3": transformers.Qwen3Config(
            **SIZES, head_dim=12, tie_word_embeddings=True, rope_parameters=plain
        ),
    }


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        else:
            value = noise * (1.5 / parameter.shape[-1] ** 0.5)
        parameter.data.copy_(value)


def main() -> None:
    for seed, (name, config) in enumerate(configs().items()):
        generator = torch.Generator().manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32
        ).eval()
        randomise(model, generator)
        if name.startswith("qwen2"):
            # One bfloat16 checkpoint per rope; the logits are float32 arithmetic on its values.
            model = model.to(torch.bfloat16)
        folder = FIXTURES / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink()
        tokens = torch.randint(0, config.vocab_size, (1, LENGTH), generator=generator)
        with torch.no_grad():
            # Buffers too: frequencies rounded to bfloat16 would be another model.
            fresh = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            ).eval()
            logits = fresh(tokens).logits
        np.savez(
            folder / "golden.npz",
            tokens=tokens[0].numpy().astype(np.int32),
            logits=logits[0].numpy().astype(np.float32),
        )


if __name__ == "__main__":
    main()
