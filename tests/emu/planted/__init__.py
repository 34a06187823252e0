"""Deliberate faults in csrc/cuda, a file for each family of kernels: what they are -> where and how.

One library holds them all, each behind a switch, as compiling takes longer than all the rest.
"""

from __future__ import annotations

from ..build import Fault
from . import graphs, layer, overlap, persistent, scan, stages

#: Their numbers begin at 1.
ALL: list[Fault] = [fault for family in (layer, persistent, scan, stages) for fault in family.FAULTS.values()]
assert len(set(ALL)) == len(ALL)
#: In source files of the host's alone, which take no race check and are compiled again by themselves.
HOST: list[Fault] = [*graphs.FAULTS.values(), *overlap.FAULTS.values()]
assert len(set(HOST)) == len(HOST)
