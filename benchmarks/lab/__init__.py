"""The laboratory, ``python -m benchmarks.lab``: fastrnn beside everything else that runs the same layers.

cases        what is timed: one layer, one shape, one direction of work; presets: which of them a run has
problem      a case's weights, input and incoming gradient, the same for every contender
contenders   a file for each library, registered in registry.py
limits       the machine's peak and bandwidth, and how close a time comes; step_floor: a step's on a GPU
memory       peak memory of one training step, each in a process of its own
overhead, scan_rate, models   calls above their operators, SRU's recurrence alone, whole models
kernel_rate                   the passes of layers alone, against the machine's limits
process      a process under watch, the GPU check's too; worker: the one that times
run          the run over all numbers of threads; supervisor: on a GPU, where a worker may hang or die
targets      what the project set out to reach; cudnn: which of its algorithms torch.nn asks for
results, merge   reading a run, and several as one
report       a run as tables, Markdown and PNG

How samples are taken is fastrnn.proof.timing, what a machine is fastrnn.proof.machine.
"""
