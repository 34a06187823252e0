"""PyTorch's own module database, run against fastrnn's classes.

torch.testing._internal.common_modules describes every module of torch.nn by constructor arguments, inputs,
a reference and bad inputs, for PyTorch's test_modules.py. Here the entries of the recurrent modules are run
with fastrnn's class in the place of torch's, through the checks of that file that need no GPU.
"""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from helpers import CELLS, LAYERS, flat
from tolerances import assert_close
from torch import nn
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import fastrnn

INFOS = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls.__module__ == "torch.nn.modules.rnn"
}
NAMES = sorted(INFOS)
TRAINING = pytest.mark.parametrize("training", [True, False])


def test_the_database_has_all_of_them():
    """An entry that is renamed or dropped must not empty these tests."""
    assert set(NAMES) == {*LAYERS, *CELLS}


def _samples(name, dtype=torch.float64, training=True, requires_grad=False):
    torch.manual_seed(0)
    info = INFOS[name]
    return info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
    )


def _made(name, sample, dtype=torch.float64, training=True, namespace=fastrnn):
    torch.manual_seed(1)
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    return getattr(namespace, name)(*args, **{"device": "cpu", "dtype": dtype, **kwargs}).train(training)


def _forward(module, sample, args=None):
    return module(*(sample.forward_input.args if args is None else args), **sample.forward_input.kwargs)


@TRAINING
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_forward(name, dtype, training):
    """Each entry's outputs against its own reference function and against torch's module."""
    for sample in _samples(name, dtype, training):
        ours = _made(name, sample, dtype, training)
        theirs = _made(name, sample, dtype, training, nn)
        got = flat(_forward(ours, sample))
        for a, b in zip(got, flat(_forward(theirs, sample)), strict=True):
            assert_close(a, b, dtype, slack=2)
        if sample.reference_fn is not None:
            expected = sample.reference_fn(ours, *sample.forward_input.args, **sample.forward_input.kwargs)
            for a, b in zip(got, flat(expected), strict=True):
                assert_close(a, b, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_factory_arguments(name):
    """device and dtype reach every parameter, one by one and together."""
    for sample in _samples(name):
        for dtype in (torch.float32, torch.float64, torch.float16):
            assert {p.dtype for p in _made(name, sample, dtype).parameters()} == {dtype}
        args, kwargs = sample.constructor_input.args, dict(sample.constructor_input.kwargs)
        kwargs["device"] = "meta"
        assert all(p.is_meta for p in getattr(fastrnn, name)(*args, **kwargs).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_repr_and_pickle(name):
    """repr works, and a pickled module computes the same, its state included."""
    for sample in _samples(name):
        m = _made(name, sample)
        assert repr(m) == repr(_made(name, sample, namespace=nn))
        expected = flat(_forward(m, sample))
        for a, b in zip(flat(_forward(pickle.loads(pickle.dumps(m)), sample)), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_tensors(name):
    """Inputs and output gradients with strides: outputs, gradients of inputs and of parameters unchanged."""

    def leaf(t, strided):
        if isinstance(t, (tuple, list)):
            return type(t)(leaf(v, strided) for v in t)
        t = t.detach()
        # Every second of a twice as large tensor, as torch's noncontiguous_like makes them.
        return (t.repeat_interleave(2, -1)[..., ::2] if strided else t.clone()).requires_grad_()

    for sample in _samples(name, requires_grad=True):
        m = _made(name, sample)
        runs = []
        for strided in (False, True):
            args = [leaf(a, strided) for a in sample.forward_input.args]
            m.zero_grad()
            out = flat(_forward(m, sample, args))
            grads = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in out]
            torch.autograd.backward(
                out, [g.repeat_interleave(2, -1)[..., ::2] if strided else g for g in grads]
            )
            runs.append([*out, *(t.grad for t in flat(args)), *(p.grad for p in m.parameters())])
        for a, b in zip(*runs, strict=True):
            assert_close(a, b, torch.float64, gradient=True)


def _check(check, name, stride):
    # An odd stride through the options of the layers, which double one after another, meets each of them.
    for sample in _samples(name, requires_grad=True)[:: stride if name in LAYERS else 1]:
        m = _made(name, sample)
        keys = [k for k, _ in m.named_parameters()]
        args = sample.forward_input.args
        leaves = [t.detach().requires_grad_() for t in flat(args)]

        def call(*tensors, m=m, keys=keys, args=args):
            values = iter(tensors)
            new = [
                tuple(next(values) for _ in a) if isinstance(a, (tuple, list)) else next(values) for a in args
            ]
            return tuple(
                flat(torch.func.functional_call(m, dict(zip(keys, values, strict=True)), tuple(new)))
            )

        assert check(call, (*leaves, *(p.detach().requires_grad_() for p in m.parameters())))


@pytest.mark.parametrize("name", NAMES)
def test_grad(name):
    """Gradients of inputs and parameters by finite differences."""
    _check(partial(torch.autograd.gradcheck, fast_mode=True), name, 3)


@pytest.mark.parametrize("name", NAMES)
def test_gradgrad(name):
    """And the second derivatives, which torch's CPU modules have."""
    assert INFOS[name].supports_gradgrad
    _check(partial(torch.autograd.gradgradcheck, fast_mode=True), name, 11)


@pytest.mark.parametrize("name", LAYERS)
def test_train_and_eval_differ(name):
    """Only dropout between layers makes a difference, and there it does."""
    assert INFOS[name].train_and_eval_differ
    for options, differ in (({"num_layers": 2, "dropout": 0.9}, True), ({"num_layers": 2}, False)):
        m = getattr(fastrnn, name)(5, 8, **options)
        x = torch.ones(3, 2, 5)
        same = torch.equal(m.train()(x)[0], m.eval()(x)[0])
        assert same is not differ


@pytest.mark.parametrize("name", NAMES)
def test_to_empty(name):
    """From meta to real memory: parameters keep their identity of name, shape and dtype."""
    for sample in _samples(name):
        args, kwargs = sample.constructor_input.args, {**sample.constructor_input.kwargs, "device": "meta"}
        m = getattr(fastrnn, name)(*args, **kwargs)
        shapes = {k: (p.shape, p.dtype) for k, p in m.named_parameters()}
        m.to_empty(device="cpu")
        assert {k: (p.shape, p.dtype) for k, p in m.named_parameters()} == shapes
        assert not any(p.is_meta for p in m.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_errors(name, dtype):
    """The database's bad inputs: type and text of each error."""
    info = INFOS[name]
    inputs = info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    assert inputs
    for case in inputs:
        args, kwargs = (
            case.module_error_input.constructor_input.args,
            case.module_error_input.constructor_input.kwargs,
        )
        construct = partial(getattr(fastrnn, name), *args, **kwargs)
        if case.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                construct()
        else:
            m = construct()
            with pytest.raises(case.error_type, match=case.error_regex):
                _forward(m, case.module_error_input)
