"""The version, in the one place that the package, its binaries and its metadata read it from."""

__version__ = "0.1.0"
