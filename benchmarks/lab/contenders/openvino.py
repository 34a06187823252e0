"""OpenVINO on the CPU, computing in float32."""

from __future__ import annotations

from fastrnn.proof.timing import Contender

from ..problem import Problem
from . import onnx
from .contender import Row, require

PACKAGES = ("onnx", "openvino")


def build(problem: Problem, threads: int) -> Contender:
    require(*PACKAGES)
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
    compiled = core.compile_model(core.read_model(onnx.model(problem).SerializeToString()), "CPU", config)
    request = compiled.create_infer_request()
    x = problem.x.numpy()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def call():
        request.infer()

    def result():
        call()
        return {"y": onnx.as_y(request.get_output_tensor().data)}

    return Contender("openvino", "OpenVINO", call, result)


ROWS = (Row("openvino", "OpenVINO", build, "#8a5bb8", "v", PACKAGES, device="cpu", training=False),)
