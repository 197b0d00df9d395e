"""`frontier pretrain` whose Cray counters lie in a folder of the test's: python -m tests.energy.metered FOLDER ARGS…"""

from __future__ import annotations

import sys
from pathlib import Path

from frontier.cli import main
from frontier.energy import choice
from frontier.energy.source import Access

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    choice.Access = lambda: Access(pm_counters=folder, powercap=folder / "no")  # type: ignore[assignment, misc]
    sys.exit(main(["pretrain", *sys.argv[2:]]))
