"""The README's example of using data/ alone, which also runs where there is no jax."""

import pathlib
import re
from typing import Any

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_readme_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["batch"].loss_mask_BS.any()
    assert names["state"]["counts"]["windows"][0] > 0
