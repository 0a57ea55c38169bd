"""Libraries that only some formats need: imported when such a source is opened."""

import importlib
import types


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
