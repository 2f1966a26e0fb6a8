"""Dependencies: a lean core, and one extra for each stage that needs more.

All other metadata is in pyproject.toml.
"""

from setuptools import setup

CORE = [
    "absl-py>=2.1",
    "annotated-types>=0.6",  # ranges in what pydantic checks
    # Flax 0.12.8 does not import beside JAX 0.11; newer releases need it, and it needs Python 3.12.
    "flax>=0.12.8,<0.13; python_version < '3.12'",
    "flax>=0.12.12,<0.13; python_version >= '3.12'",
    "ftfy>=6.3,<7",
    "huggingface_hub>=1.0,<3",
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3,<0.4",
    "ml_collections>=1.1,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pydantic>=2.7,<3",  # checks the files of runs and weights against their schemas
    "pillow>=11,<13",  # 13 resizes in another order, which the crops on the device do not follow
    "safetensors>=0.5",
    "scikit-learn>=1.6",  # carries the handwritten digits of the demo
    "scipy>=1.13",
    "tensorboard>=2.20,<3",
    "tokenizers>=0.21,<0.24",
    "tqdm>=4.66",
]
CONVERT = [
    "open_clip_torch>=3.3,<4",
    "protobuf>=4",  # with sentencepiece: tokenizers that the hub has only in its format
    "sentencepiece>=0.2",
    "transformers>=5.17,<6",
    "typing_extensions>=4.12",  # the TypedDict that pydantic wants before Python 3.12
]
CAPTIONING = [
    "accelerate>=1.15,<2",
    "bitsandbytes>=0.50,<0.51",
    "torch>=2.13,<3",
    "torchvision>=0.28,<1",
    "transformers>=5.24,<6",
]
OPENAI = ["anyio>=4.10,<5", "openai>=2.54,<4"]
DEMO = ["matplotlib>=3.9"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0,<2"]
TFDS = [
    "array_record>=0.8,<0.9",
    "importlib_resources>=6",  # which the next imports to prepare a set, but does not require
    "tensorflow-datasets>=4.9.10,<4.10",
]

WANDB = ["wandb>=0.31,<1"]

# All that the tests need beside torch, which is large and not there for every Python. The tests of
# what needs it (convert's tags, LLaVA, parity with PyTorch) are then skipped, with this as reason.
TEST_WITHOUT_TORCH = [
    *OPENAI,
    *DEMO,
    *DOCS,
    *TFDS,
    *WANDB,
    "basedpyright==1.40.2",
    "beartype>=0.22,<1",
    "build>=1.2",  # with setuptools and twine: the wheel and the sdist
    "fastapi>=0.115",  # with rich and uvicorn: `transformers serve`
    "hypothesis>=6.100,<7",
    "import-linter>=2.5,<3",
    "ipykernel>=6.29",  # with nbclient: the notebooks
    "ipywidgets>=8",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "protobuf>=4",
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "rich>=13",
    "ruff==0.17.6",
    "sentencepiece>=0.2",
    "setuptools>=77.0.3",
    "transformers>=5.24,<6",
    "twine>=6.1",
    "uvicorn>=0.30",
]

setup(
    install_requires=CORE,
    extras_require={
        "convert": CONVERT,
        "captioning": CAPTIONING,
        "openai": OPENAI,
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "demo": DEMO,
        "docs": DOCS,
        "tfds": TFDS,
        "wandb": WANDB,
        "test-without-torch": TEST_WITHOUT_TORCH,
        # torch 2.13.0 and torchvision 0.28.0 are the pair that the tests were run with.
        "test": [
            *CONVERT,
            *CAPTIONING,
            *TEST_WITHOUT_TORCH,
            "torch==2.13.0",
            "torchvision==0.28.0",
        ],
    },
)
