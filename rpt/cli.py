"""What all commands share: one-line user errors, gentle signals, programs compiled only once."""

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from data import cache, commands

# OSError: a file or folder that is missing, of the wrong kind, not permitted, or a full disk.
USER_ERRORS = (ValueError, OSError)


# --help lists the flags of the command's own module: --config is to count as one.
flags.disclaim_key_flags()


def define_config() -> Any:
    """--config=configs/NAME.py[:arg], with --config.field=value overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "Experiment, such as configs/mini.py[:arg].", lock_config=True
    )


def define_hosts() -> Any:
    """--hosts, of the commands that may run in several processes (rpt/hosts.py)."""
    return flags.DEFINE_string(
        "hosts",
        os.environ.get("RPT_HOSTS", ""),
        "Several processes: 'auto' on Cloud TPU, or ADDRESS:PORT,COUNT,ID (RPT_HOSTS).",
    )


def overrides() -> dict[str, Any]:
    """The --config.field=value pairs of this command line."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs `main` under absl, with flags read and a config file checked."""
    # jax reports at INFO which backends are not there.
    logging.set_verbosity(logging.WARNING)
    _keep_programs()
    report(lambda: app.run(main, flags_parser=_parse))


def _keep_programs() -> None:
    """What XLA takes more than a second to compile is kept in the cache folder for later runs.

    Unless the user has chosen: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. The folder may be deleted at any time.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache.root() / "programs"))


class Stopped(Exception):
    """A stop signal came where there is nothing to save yet; says what happens next time."""


def report(program: Callable[[], Any]) -> None:
    """Runs a program; a user's mistake ends in one line and exit status 1."""
    try:
        program()
    except Stopped as stopped:
        print(stopped)
    except USER_ERRORS as error:
        print(f"error: {commands.one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
    """The flags, the config file read and its overrides applied.

    Raises:
      ValueError: an unknown flag or field, a value of the wrong type, a config that cannot be read.
    """
    try:
        rest = flags.FLAGS(argv)
        config: Any = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
        if config is not None:
            # A file that is not there is reported at the first use of its content only.
            _ = config.to_dict
    except (flags.Error, OSError) as error:
        raise ValueError(f"{_flag_mistake(error)}; --help lists the flags") from error
    # ml_collections' ways to say that there is no such field, or no get_config.
    except (AttributeError, KeyError) as error:
        raise ValueError(_unknown_name(error, argv)) from error
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; flags look like --name=value")
    return rest


def _flag_mistake(error: Exception) -> str:
    """Without the traceback through the config file that ml_collections puts into its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = lines[0].partition(": Error whilst parsing")[0]
    if where != lines[0]:
        return f"{where}: {lines[-1].partition(': ')[2]}"
    return lines[-1]


def _unknown_name(error: Exception, argv: list[str]) -> str:
    text = str(error)
    words = re.findall(r"\w+", text)
    name = words[-1 if "Attempting to lookup" in text else 0]
    given = [arg for arg in argv if re.match(rf"--config\.([\w.]*\.)?{name}\b", arg)]
    if not given:
        return f"the config cannot be read: {commands.one_line(error)}"
    meant = re.search(r'Did you mean "(\w+)"', text)
    hint = f"; did you mean {meant.group(1)!r}?" if meant else ""
    return f"{given[0]}: the config has no field {name!r} there{hint}"


class StopSignal:
    """SIGTERM and Ctrl-C ask the loop to save and end; the second Ctrl-C ends at once."""

    def __init__(self):
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        del frame
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
