"""Joules of a run: cumulative counters of node, devices and host behind one small interface.

Nothing here imports torch or a vendor's library before a meter is opened. `python -m frontier.energy` says what can be read on this
machine; docs/energy.md says what each source includes.
"""

from frontier.energy.choice import open_meter, survey
from frontier.energy.meter import Lap, Meter

__all__ = ["Lap", "Meter", "open_meter", "survey"]
