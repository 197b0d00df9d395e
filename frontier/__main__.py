"""`python -m frontier`: the same as the `frontier` command; also how `--ranks N` starts each rank."""

import os
import sys

from frontier.cli import main


def leave(code: int) -> None:
    """End the process. A rank of several leaves at once: everything it had to write is written and its process group is gone, and
    tearing down PyTorch's threads can abort it (seen once in some hundred ranks: "terminate called without an active exception"),
    which its launcher would take for a failure.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "torch" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
