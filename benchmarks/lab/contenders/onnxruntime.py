"""ONNX Runtime on the CPU, buffers bound."""

from __future__ import annotations

import torch

from fastrnn.proof.timing import Contender

from ..problem import Problem
from . import onnx
from .contender import Row, require

PACKAGES = ("onnx", "onnxruntime")


def build(problem: Problem, threads: int) -> Contender:
    require(*PACKAGES)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between runs would take the cores of the next contender; within a run they spin.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        onnx.model(problem).SerializeToString(), options, providers=["CPUExecutionProvider"]
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
        return {"y": onnx.as_y(y.numpy())}

    return Contender("onnxruntime", "ONNX Runtime", call, result)


ROWS = (Row("onnxruntime", "ONNX Runtime", build, "#3f74b5", "^", PACKAGES, device="cpu", training=False),)
