"""The allocator helper agrees or declines, and memory still works after it."""

import subprocess
import sys

PROGRAM = """
import resource
from frontier.launch.host_memory import keep_freed_memory
agreed = keep_freed_memory()
import numpy as np
def touch():
    np.ones(40 << 20, dtype=np.uint8)
touch(); touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(int(agreed), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_blocks_are_used_again_without_page_faults() -> None:
    # In a process of its own: the setting is for good.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    agreed, faults = map(int, done.stdout.split())
    assert agreed in (0, 1)
    if agreed:
        assert faults < 100  # 40 MiB are 10,240 pages
