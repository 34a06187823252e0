"""The only door to the compiled operators: nothing else in this package imports a binary.

library         loads them, and says what runs: instruction sets, tiers, threads
cuda, devices   what the CUDA library says of itself, and the GPUs that it runs on
mode            the numbers of their arguments mode and needs
autograd        their derivatives, for eager code
fakes           what they return without data, for tracers and compilers
differentiable, script   their forms for tracers and TorchScript
onnx, onnx_weights, onnx_elementwise, flops   what others make of them
"""
