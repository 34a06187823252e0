"""The laboratory, ``python -m benchmarks.lab``: fastrnn beside everything else that runs the same layers.

cases        what is timed: shapes, groups, presets
problem      a case's weights, input and incoming gradient, the same for every contender
contenders   fastrnn, torch.nn and the plain reference as something to call; peers: others on the CPU
timing       interleaved samples and their statistics
limits       the machine's peak and bandwidth, and how close a time comes to them
memory       peak memory of one training step, each in a process of its own
worker, run  a process for each thread count, and the run over all of them
supervisor   the same on a GPU, where a worker may hang or die, and has to end in time
targets      what the project set out to reach
document, report, plots   the result as Markdown, HTML and PNG
merge        several runs as one
gpu          the comparison on a GPU: cases, contenders, targets, report; cuDNN's algorithms, a step's floor
"""
