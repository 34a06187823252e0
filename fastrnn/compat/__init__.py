"""Other packages' interfaces on fastrnn's layers: ``fastrnn.compat.sru`` for the ``sru`` package."""
