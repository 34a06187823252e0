"""What run_faults runs of a layer with stages."""

from __future__ import annotations

from stage_cases import GRU, LSTM, RNN, Case, check


def check_cases() -> list[Case]:
    """Every kernel and option, rows of each kind, heads, rows of several warps and of several blocks."""
    everything = LSTM[-1]
    return [
        # First, as a race within a warp is none, and shows as wrong numbers.
        Case("lstm", ("norm=0.001",), T=2, B=2, H=70),
        Case("lstm", everything, D=2, rows="reset"),
        Case("lstm", everything, P=5, D=2, rows="lengths"),
        Case("lstm", ("peephole", "zoneout_h"), T=2, B=2, H=150),
        Case("lstm", ("zoneout_h", "zoneout_c"), H=8, heads=2, D=2, rows="packed"),
        Case("lstm", ("recurrent_mask",), rows="lengths"),
        Case("gru", GRU[4], H=12, heads=3, D=2, rows="lengths"),
        Case("gru", GRU[4], B=5, rows="packed"),
        Case("gru", GRU[5], rows="reset"),
        Case("rnn_tanh", RNN[2], D=2, rows="packed"),
    ]


def worst_of(ops, case: Case) -> tuple[float, str]:
    """check()'s own tolerance is the only one: what it lets pass is right."""
    check(ops, case)
    return 0.0, ""
