"""What a GPU has proven: which tier of the CUDA kernels may run there unasked.

kinds      layers that share an outcome, and the tiers that could run them
stacks     stacked layers, and the wavefronts that could run them
identity   what a device is, down to the libraries that run on it
cache      the outcomes, in a file of the user's; tables of the same form ship with the package
decide     from verdicts and times to the tiers that run
trust      what this process knows of each device, for calls and for the planner
session    verify, then time, whatever runs the candidates
"""
