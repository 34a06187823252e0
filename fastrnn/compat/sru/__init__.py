"""fastrnn behind the interface of the ``sru`` package: ``import fastrnn.compat.sru as sru``.

Code written for sru 2.6 or 3.0 runs unchanged: both orders of arguments, attribute names, checkpoints. The
``sru`` package itself is neither needed nor imported.

The two versions order their arguments differently from the eighth on and have other defaults. A call is
understood as 2.6's where it uses an argument that only 2.6 has (``custom_m``, ``n_proj``) or where the types
of its positional arguments are those of 2.6; else as 3.0's. ``sru_version="2.6.0"``, or for all calls
``fastrnn.compat.sru.default_version = "2.6.0"``, says so outright. A layer understood as 2.6's has 2.6's
initial values, projections and names (``layer.weight``); its ``state_dict`` has 3.0's keys, and loads both.
"""

from . import modules, ops
from .modules import SRU, SRUCell, SRUpp, SRUppCell

__all__ = ["SRU", "SRUCell", "SRUpp", "SRUppCell", "__version__", "default_version", "modules", "ops"]

#: The newest version whose interface is served.
__version__ = "3.0.0.dev6"
#: The version that a call is understood as where nothing else tells: "2.6.0" or "3.0.0.dev6".
default_version = __version__
