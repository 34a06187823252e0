"""Which kernel runs a layer, why, and what it costs: pure questions."""
