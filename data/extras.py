"""Libraries that only some formats need: imported when such a source is opened."""

import importlib
import re
import types

from data import records


def load(module: str, extra: str) -> types.ModuleType:
    """Imports a library of one of the extras of setup.py.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this needs {module.partition('.')[0]}: pip install 'rpt-jax[{extra}]' "
            f"({' '.join(str(error).split())})"
        ) from error


def load_of_user(module: str) -> types.ModuleType:
    """Imports the module that a spec names with `module=`: it registers what the spec opens.

    Raises:
        ValueError: there is no such module.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"module={module} cannot be imported: {error}") from error


def fault_of_tensorflow(error: Exception, where: str) -> records.Fault:
    """What TensorFlow says when a file is damaged, as a fault; any other error is raised again."""
    # By the names of its classes: it is not imported here.
    if type(error).__name__ not in ("DataLossError", "NotFoundError"):
        raise error
    reason = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", " ".join(str(error).split()))
    return records.Fault("truncated", where, f"cannot be read on: {reason}")
