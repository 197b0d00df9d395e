"""The `frontier` command, and `python -m frontier`, which is how `--ranks N` starts each rank."""

import os
import sys

from frontier.cli import main
from frontier.errors import UserError
from frontier.launch.ranks import discover


def leave(code: int) -> None:
    """End the process. A rank of several leaves at once: everything it had to write is written and its process group is gone, and
    tearing down PyTorch's threads can abort it (seen once in some hundred ranks: "terminate called without an active exception"),
    which its launcher would take for a failure.
    """
    if "torch" in sys.modules and _several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _several() -> bool:
    try:
        return discover().world_size > 1
    except UserError:
        return False


def run() -> None:
    """The `frontier` command."""
    leave(main())


if __name__ == "__main__":
    run()
