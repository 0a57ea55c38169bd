"""What all commands share: one line per user error, and signals that end a run gently."""

import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError)


def define_config() -> Any:
    """--config=configs/NAME.py[:arg], with --config.field=value overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "Experiment, such as configs/mini.py[:arg].", lock_config=True
    )


def overrides() -> dict[str, Any]:
    """The --config.field=value pairs of this command line."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs `main` under absl; a user's mistake ends in one line and exit status 1."""
    # jax reports at INFO which backends are not there.
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main)
    # ml_collections reports an unknown field as AttributeError while flags are parsed.
    except (*USER_ERRORS, AttributeError, KeyError, TypeError) as error:
        if not isinstance(error, USER_ERRORS) and not _while_parsing(error):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _while_parsing(error: BaseException) -> bool:
    """Whether the error arose in flag parsing and not in our own code."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "_register_and_parse_flags_with_usage":
            return True
        frame = frame.tb_next
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


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
