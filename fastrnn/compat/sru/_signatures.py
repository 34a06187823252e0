"""Which version's arguments a call has, and what they are in fastrnn's."""

from __future__ import annotations

#: Positional order and defaults of the versions where they differ. The first seven arguments are the same.
SRU_ARGUMENTS = {
    "2.6.0": {
        "use_tanh": False,
        "layer_norm": False,
        "highway_bias": 0.0,
        "has_skip_term": True,
        "rescale": False,
        "v1": False,
        "nn_rnn_compatible_return": False,
        "custom_m": None,
        "proj_input_to_hidden_first": False,
        "amp_recurrence_fp16": False,
        "normalize_after": False,
        "weight_c_init": None,
    },
    "3.0.0.dev6": {
        "highway_bias": 0.0,
        "layer_norm": False,
        "normalize_after": False,
        "transform_module": None,
        "has_skip_term": True,
        "rescale": False,
        "use_tanh": False,
        "v1": False,
        "nn_rnn_compatible_return": False,
        "proj_input_to_hidden_first": False,
        "amp_recurrence_fp16": True,
        "weight_c_init": 1.0,
    },
}
CELL_ARGUMENTS = {
    "2.6.0": {
        "use_tanh": False,
        "highway_bias": 0.0,
        "has_skip_term": True,
        "layer_norm": False,
        "rescale": True,
        "v1": False,
        "custom_m": None,
        "amp_recurrence_fp16": False,
        "normalize_after": False,
        "weight_c_init": None,
    },
    "3.0.0.dev6": {
        "highway_bias": 0.0,
        "layer_norm": False,
        "normalize_after": True,
        "transform_module": None,
        "rescale": False,
        "has_skip_term": True,
        "use_tanh": False,
        "v1": False,
        "amp_recurrence_fp16": True,
        "weight_c_init": 1.0,
    },
}
_SRU_SHARED = (
    "input_size",
    "hidden_size",
    "num_layers",
    "dropout",
    "rnn_dropout",
    "bidirectional",
    "projection_size",
)
_CELL_SHARED = ("input_size", "hidden_size", "dropout", "rnn_dropout", "bidirectional", "projection_size")

VERSIONS = tuple(SRU_ARGUMENTS)


def _fits(values: tuple, arguments: dict) -> bool:
    """Whether positional values have the types of these arguments: switches are bool, or 0 or 1; a bias is
    a number but no bool; a module is None or no number."""
    for value, default in zip(values, arguments.values(), strict=False):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(default, bool):
            fits = isinstance(value, bool) or (number and value in (0, 1))
        elif isinstance(default, float):
            fits = number
        else:
            fits = not isinstance(value, bool)
        if not fits:
            return False
    return len(values) <= len(arguments)


def version_of(cell: bool, args: tuple, kwargs: dict, default: str) -> str:
    """The version whose signature a call of SRU (or SRUCell) has; default where both fit."""
    if kwargs.keys() & {"custom_m", "n_proj"}:
        return "2.6.0"
    if "transform_module" in kwargs:
        return "3.0.0.dev6"
    table = CELL_ARGUMENTS if cell else SRU_ARGUMENTS
    rest = args[len(_CELL_SHARED if cell else _SRU_SHARED) :]
    fitting = [version for version in VERSIONS if _fits(rest, table[version])]
    return fitting[0] if len(fitting) == 1 else default


def bind(name: str, cell: bool, args: tuple, kwargs: dict, version: str) -> dict:
    """The arguments of a call by name, with the version's defaults where those differ from fastrnn's."""
    shared = _CELL_SHARED if cell else _SRU_SHARED
    arguments = (CELL_ARGUMENTS if cell else SRU_ARGUMENTS)[version]
    names = (*shared, *arguments)
    if len(args) > len(names):
        raise TypeError(f"{name}: expected at most {len(names)} positional arguments, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    twice = given.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"{name}: got {', '.join(sorted(twice))} by position and by name")
    return {**arguments, **given, **kwargs}
