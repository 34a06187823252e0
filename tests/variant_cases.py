"""The variants of the cells for tests, and their equations once more: in numpy, a step after the other, from
the papers and not from the package."""

from __future__ import annotations

import numpy as np

LSTM = {
    "norm": {"norm": "layer"},
    "norm eps": {"norm": "layer", "norm_eps": 0.01},
    "zoneout": {"zoneout": 0.3},
    "zoneout h": {"zoneout": (0.4, 0.0)},
    "zoneout c": {"zoneout": (0.0, 0.4)},
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "weight dropout": {"weight_dropout": 0.4},
    "peephole": {"peephole": True},
    "coupled": {"coupled": True},
    "heads": {"heads": 3},
    "all": {
        "norm": "layer",
        "zoneout": (0.2, 0.3),
        "recurrent_dropout": 0.3,
        "weight_dropout": 0.2,
        "peephole": True,
        "coupled": True,
        "heads": 3,
    },
}
_ALIKE = ("norm", "zoneout", "recurrent dropout", "weight dropout", "heads")
GRU = {
    **{k: LSTM[k] for k in _ALIKE},
    "reset before": {"reset_after": False},
    "reset before, heads": {"reset_after": False, "heads": 3, "recurrent_dropout": 0.3, "zoneout": 0.2},
    "all": {"norm": "layer", "zoneout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.2, "heads": 3},
}
RNN = {**{k: LSTM[k] for k in _ALIKE}, "all": GRU["all"]}
#: (class, options of torch's, options of the variant), by a name.
CASES = {
    **{f"lstm {k}": ("LSTM", {}, v) for k, v in LSTM.items()},
    "lstm projected": ("LSTM", {"proj_size": 3}, LSTM["all"]),
    **{f"gru {k}": ("GRU", {}, v) for k, v in GRU.items()},
    **{f"rnn {k}": ("RNN", {}, v) for k, v in RNN.items()},
    "rnn relu": ("RNN", {"nonlinearity": "relu"}, RNN["all"]),
}


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _norm(a, gain, eps, bias=0.0):
    a = a - a.mean(-1, keepdims=True)
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + eps) * gain + bias


def dense(w, heads, gates):
    """Recurrent weights with the zeros that heads leave out."""
    rows, columns = w.shape
    size, out = rows // gates // heads, columns * heads
    full = np.zeros((rows, out))
    for row in range(rows):
        head = row % (rows // gates) // size
        full[row, head * columns : (head + 1) * columns] = w[row]
    return full


def step(kind, x, h, c, w, options, keep_h=0.0, keep_c=0.0, drop=1.0):
    """One step of one direction. w: its weights by name, numpy. Returns h and c (None unless LSTM)."""
    gates = {"LSTM": 4, "GRU": 3}.get(kind, 1)
    zeros = np.zeros(w["weight_ih"].shape[0])
    b_ih, b_hh = w.get("bias_ih", zeros), w.get("bias_hh", zeros)
    w_hh = dense(w["weight_hh"], options.get("heads", 1), gates)
    a, seen = x @ w["weight_ih"].T, drop * h
    r = seen @ w_hh.T
    if options.get("norm"):
        eps = options.get("norm_eps", 1e-5)
        a, r = _norm(a, w["norm_ih"], eps), _norm(r, w["norm_hh"], eps)
    a, r = a + b_ih, r + b_hh
    if kind == "LSTM":
        i, f, g, o = np.split(a + r, 4, -1)
        if options.get("peephole"):
            p_i, p_f, p_o = np.split(w["weight_peephole"], 3)
            i, f = i + p_i * c, f + p_f * c
        i = _sigmoid(i)
        f = 1 - i if options.get("coupled") else _sigmoid(f)
        new_c = f * c + i * np.tanh(g)
        if options.get("peephole"):
            o = o + p_o * new_c
        seen_c = _norm(new_c, w["norm_c"], eps, w["norm_c_bias"]) if options.get("norm") else new_c
        new_h = _sigmoid(o) * np.tanh(seen_c)
        new_c = keep_c * c + (1 - keep_c) * new_c
    elif kind == "GRU":
        (a_r, a_z, a_n), (r_r, r_z, r_n) = np.split(a, 3, -1), np.split(r, 3, -1)
        reset, z = _sigmoid(a_r + r_r), _sigmoid(a_z + r_z)
        if options.get("reset_after", True):
            n = np.tanh(a_n + reset * r_n)
        else:
            hidden = a_n.shape[-1]
            n = np.tanh(a_n + (reset * seen) @ w_hh[2 * hidden :].T + b_hh[2 * hidden :])
        new_h, new_c = (1 - z) * n + z * h, None
    else:
        new_h, new_c = (np.tanh if kind == "RNN" else lambda v: np.maximum(v, 0))(a + r), None
    if "weight_hr" in w:
        new_h = new_h @ w["weight_hr"].T
    return keep_h * h + (1 - keep_h) * new_h, new_c
