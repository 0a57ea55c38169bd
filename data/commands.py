"""What the commands of this package share: a user's mistake is one line."""

import sys
from collections.abc import Callable


def run(main: Callable[[], None]) -> None:
    """Runs a command; a ValueError or OSError ends in `error: ...` and exit status 1."""
    try:
        main()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; nothing more can be said to it.
        sys.stderr.close()
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; of the system's own, the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
