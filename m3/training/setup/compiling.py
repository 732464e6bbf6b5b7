"""torch.compile (https://docs.pytorch.org/docs/stable/torch.compiler.html) of the layers that
repeat.

in: the model of a run; out: the same one, whose tower's and decoder's layers compile when they are
first called. What lies around them (which placeholders an image has, how many label tokens a batch)
depends on the data, so that compiling `forward` as a whole breaks into dozens of small graphs. A
layer is compiled in place: names of modules and weights stay, and so do saving, resuming, PEFT and
data parallelism around it. Layers of one type share their graph, as in PyTorch's regional
compilation.

Rows have any number of tokens, so sizes are dynamic from the start: no graph per length. A router's
layer breaks in two, where transformers records its logits.
"""

import warnings

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from m3.hardware import choose_device
from m3.model.anatomy import layer_stacks


def check_compile() -> None:
    """Compiles a line of its own, as a layer would be: a `ValueError` where this machine cannot."""
    device = choose_device()
    try:
        without_caches = torch.compiler.config.patch(force_disable_caches=True)  # pyright: ignore[reportAttributeAccessIssue]
        with without_caches, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was taken from a cache
            torch.compile(_probe)(torch.ones(64, device=device))
    except BackendCompilerFailed as error:
        needed = (
            "a C++ compiler (g++, or the one that CXX names)"
            if device.type == "cpu"
            else "Triton and a C compiler"
        )
        raise ValueError(
            f"hardware.compile: torch.compile makes no kernel for {device.type} on this machine "
            f"({str(error).splitlines()[0]}); "
            f"it needs {needed} and Python's headers; install them, or set hardware.compile to "
            "false"
        ) from error


def _probe(values: Tensor) -> Tensor:
    return values.sin() + 1


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Every layer of every stack in `model` is compiled when it is first called, and whenever
    its kind of input changes.
    """
    for stack in layer_stacks(model):
        for layer in stack:
            layer.compile(dynamic=True, backend=backend)
