"""Tuning at work: what ``_plan.tuning`` keeps of a GPU is found out here.

tune        fastrnn.tune: what is asked for, who is told
child       candidates in a process of their own, with a time limit
candidates  that process: whether a tier is right, and how long it takes
stacks      the same for stacked layers as a wavefront
calls       what an ordinary call asks before its layers run
"""
