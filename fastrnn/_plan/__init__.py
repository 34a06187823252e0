"""Which kernel runs a layer, why, and what it costs: pure questions.

route           who computes a layer: the kernels, torch's own layer, the reference; calls ask it too
explain, subject, explanation   fastrnn.explain: the question, what it is about, and the answer
costs           operations, bytes, the seconds that a machine needs at least
gpus, wavefront what plans know of a GPU, and layers that overlap in time on one
"""
