"""Other frameworks on the CPU, each in the way it runs fastest: fixed shapes, compiled ahead, buffers bound.

All of them are optional. They are built from the same torch.nn weights; the ONNX model is written node by
node, so nothing depends on an exporter.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

import torch

from fastrnn.proof.timing import Contender

from ..cases import GATES
from ..problem import Problem, Unsupported

#: What each contender needs to import.
MODULES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "jax": ("jax",)}

# ONNX orders the LSTM's gates i, o, f, c and the GRU's z, r, h.
_ONNX_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def missing(key: str) -> str | None:
    """The package that this contender lacks, None where it can run."""
    return next((m for m in MODULES.get(key, ()) if importlib.util.find_spec(m) is None), None)


def _require(key: str) -> None:
    if package := missing(key):
        raise Unsupported(f"{package} is not installed")


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for package in ("onnx", "onnxruntime", "openvino", "jax", "jaxlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    from . import flashrnn as gpu_peers

    return found | gpu_peers.versions()


def onnx_model(problem: Problem):
    """The layer as one ONNX node: x (T, B, I) -> y (T, 1, B, H)."""
    from onnx import TensorProto, helper, numpy_helper

    case = problem.case

    def reorder(w):
        gates = w.cpu().chunk(GATES[case.cell])
        return torch.cat([gates[g] for g in _ONNX_ORDER[case.cell]])

    w_ih, w_hh, b_ih, b_hh = (reorder(w) for w in problem.weights())
    constants = {"W": w_ih[None], "R": w_hh[None], "B": torch.cat([b_ih, b_hh])[None]}
    attributes = {"hidden_size": case.H}
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1
    node = helper.make_node(case.cell.upper(), ["x", "W", "R", "B"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.B, case.I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.T, 1, case.B, case.H])],
        [numpy_helper.from_array(t.numpy(), name) for name, t in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def _as_y(array) -> torch.Tensor:
    return torch.from_numpy(array.copy()).squeeze(1)


def onnxruntime(problem: Problem, threads: int) -> Contender:
    _require("onnxruntime")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between runs would take the cores of the next contender; within a run they spin.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        onnx_model(problem).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = ort.OrtValue.ortvalue_from_numpy(problem.x.numpy())
    case = problem.case
    y = ort.OrtValue.ortvalue_from_numpy(torch.zeros(case.T, 1, case.B, case.H).numpy())
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)

    def call():
        session.run_with_iobinding(binding)

    def result():
        call()
        return {"y": _as_y(y.numpy())}

    return Contender("onnxruntime", "ONNX Runtime", call, result)


def openvino(problem: Problem, threads: int) -> Contender:
    _require("openvino")
    import openvino as ov

    core = ov.Core()
    config = {
        # The default is bfloat16 where the CPU has it: another computation.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinning would move the thread that the other contenders run on.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(onnx_model(problem).SerializeToString()), "CPU", config)
    request = compiled.create_infer_request()
    x = problem.x.numpy()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def call():
        request.infer()

    def result():
        call()
        return {"y": _as_y(request.get_output_tensor().data)}

    return Contender("openvino", "OpenVINO", call, result)


def jax(problem: Problem, threads: int) -> Contender:
    """A jitted scan, the input projection outside of it, weights stored (inputs, gates) as JAX's layers do.

    Inference has the weights as constants of the program; training returns the output and every gradient from
    one jit. JAX takes its number of threads from the environment at its first use: see run.environment.
    """
    _require("jax")
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


BUILDERS = {"onnxruntime": onnxruntime, "openvino": openvino, "jax": jax}
