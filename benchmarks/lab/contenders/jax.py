"""JAX on the CPU: a jitted scan, backward included."""

from __future__ import annotations

import torch

from fastrnn.proof.timing import Contender

from ..problem import Problem
from .contender import Row, require

PACKAGES = ("jax", "jaxlib")


def build(problem: Problem, threads: int) -> Contender:
    """A jitted scan, the input projection outside of it, weights stored (inputs, gates) as JAX's layers do.

    Inference has the weights as constants of the program; training returns the output and every gradient from
    one jit. JAX takes its number of threads from the environment at its first use: see process.environment.
    """
    require(*PACKAGES)
    import jax
    import jax.numpy as jnp

    case = problem.case

    def to_jax(t):
        return jnp.asarray(t.cpu().numpy())

    x, grad = to_jax(problem.x), to_jax(problem.grad)
    weights = [to_jax(w).T if w.dim() == 2 else to_jax(w) for w in problem.weights()]
    zeros = jnp.zeros((case.B, case.H), x.dtype)

    def lstm(state, gx, r, b):
        h, c = state
        i, f, g, o = jnp.split(gx + h @ r + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(h, gx, r, b):
        x_r, x_z, x_n = jnp.split(gx, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(h @ r + b, 3, axis=-1)
        z = jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
        h = (1 - z) * n + z * h
        return h, h

    def rnn(h, gx, r, b):
        h = jnp.tanh(gx + h @ r + b)
        return h, h

    step = {"lstm": lstm, "gru": gru, "rnn": rnn}[case.cell]
    initial = (zeros, zeros) if case.cell == "lstm" else zeros

    def forward(x, w_ih, w_hh, b_ih, b_hh):
        gates = x @ w_ih + b_ih
        return jax.lax.scan(lambda state, gx: step(state, gx, w_hh, b_hh), initial, gates)[1]

    def to_torch(array):
        return torch.from_numpy(jax.device_get(array).copy())

    if not case.training:
        run = jax.jit(lambda x: forward(x, *weights))

        def call():
            return run(x).block_until_ready()

        return Contender("jax", "JAX", call, lambda: {"y": to_torch(call())})

    @jax.jit
    def forward_backward(x, grad, *weights):
        y, backward = jax.vjp(forward, x, *weights)
        return y, backward(grad)

    def call():
        return jax.block_until_ready(forward_backward(x, grad, *weights))

    def result():
        y, (grad_x, grad_w_ih, grad_w_hh, *_) = call()
        tensors = {"y": y, "grad_x": grad_x, "grad_w_ih": grad_w_ih.T, "grad_w_hh": grad_w_hh.T}
        return {name: to_torch(t) for name, t in tensors.items()}

    return Contender("jax", "JAX", call, result)


ROWS = (Row("jax", "JAX", build, "#b0303a", "D", PACKAGES, device="cpu"),)
