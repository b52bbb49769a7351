"""A CUDA device without one: `python -m tests.pretend_cuda train …` is `vizer-rl train …` on it.

Tensors lie on the CPU and compute there, and their storage has a mark where a GPU would hold them.
What mixes both kinds raises, as on CUDA; a graph records and replays as in test_recorded_step. Not
pretended: speed, memory, rounding, kernels of one's own (Triton, FlexAttention), several devices.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import peft.utils.save_and_load
import safetensors.torch
import torch
from torch import Tensor
from torch.amp import autocast_mode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .policy.test_recorded_step import Recording

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
NAME, MEMORY = "NVIDIA H100 80GB HBM3", 80 * 2**30
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
NOTHING = "synchronize empty_cache reset_peak_memory_stats manual_seed manual_seed_all ipc_collect"
BYTES = "memory_reserved memory_allocated max_memory_allocated max_memory_reserved"
graphs: list[Recording] = []


def is_real(x: Tensor) -> bool:
    """Whether a tensor has memory at all: no fake one, none on meta."""
    with torch._C.DisableTorchFunction():
        return type(x).__name__ != "FakeTensor" and x.device.type == "cpu"


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor has the mark."""
    with torch._C.DisableTorchFunction():
        return is_real(x) and getattr(x.untyped_storage(), "on_gpu", False)


def mark(x: Any, gpu: bool = True) -> Any:
    """The same, with the mark on its storage or without."""
    if isinstance(x, Tensor) and is_real(x):
        with torch._C.DisableTorchFunction():
            x.untyped_storage().on_gpu = gpu
    return x


def is_cuda(device: Any) -> bool:
    """Whether this names the GPU."""
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


class Operations(TorchDispatchMode):
    """Refuses operations on tensors of both kinds; what comes of a marked one is marked."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not all(map(is_real, tensors)) or str(kwargs.get("device")) == "meta":
            return operation(*args, **kwargs)
        if wanted := is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        where = {on_gpu(x) for x in tensors if x.ndim}  # a number of the CPU's goes with both
        if operation in INDEXING and on_gpu(args[0]):  # may be indexed from the CPU
            where = {on_gpu(x) for x in (args[0], *args[2:3]) if x.ndim}
        if operation not in COPIES and (
            len(where) > 1 or (where == {False} and any(map(on_gpu, tensors)))
        ):
            kinds = [(tuple(x.shape), "cuda" if on_gpu(x) else "cpu") for x in tensors]
            raise RuntimeError(f"tensors on two devices: {operation} of {kinds}")
        output = operation(*args, **kwargs)
        if operation is not aten.copy_.default and (wanted or any(map(on_gpu, tensors))):
            for x in tree_leaves(output):
                mark(x)
        return output


class Functions(TorchFunctionMode):
    """Answers what Python asks about devices, and moves tensors between the two."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name, first = getattr(function, "__name__", ""), args[0] if args else None
        here = isinstance(first, Tensor) and on_gpu(first)
        if function == Tensor.device.__get__ and here:
            return CUDA
        if function == Tensor.is_cuda.__get__:
            return here
        if function in (Tensor.numpy, Tensor.__array__) and here:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda) and is_real(first):
            return self.moved(function, first, list(args[1:]), dict(kwargs))
        if function is Tensor.new_tensor and here and "device" not in kwargs:
            return mark(function(*args, **kwargs))
        if is_cuda(kwargs.get("device")) and name != "_parse_to":
            output = function(*args, **{**kwargs, "device": CPU})
            return mark(output.clone() if function is torch.as_tensor else output)
        return function(*args, **kwargs)

    def moved(self, function: Any, x: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
        """What `x.to`, `x.cpu` or `x.cuda` gives."""
        target = {Tensor.cpu: CPU, Tensor.cuda: CUDA}.get(function, kwargs.pop("device", None))
        if rest and isinstance(rest[0], Tensor):
            target, rest = (CUDA if on_gpu(rest[0]) else CPU), [rest[0].dtype]
        elif rest and isinstance(rest[0], str | torch.device):
            target = rest.pop(0)
        if target is not None and torch.device(target).type == "meta":
            return x.to("meta")
        kwargs.pop("non_blocking", None)
        types = [value for value in rest if isinstance(value, torch.dtype)]
        y = Tensor.to(x, *types, **kwargs) if types or kwargs else x
        if target is None or is_cuda(target) == on_gpu(x):
            return y
        return mark(y.clone() if y.data_ptr() == x.data_ptr() else y, is_cuda(target))


@contextmanager
def graph(recording: Recording, **_: Any) -> Any:
    """torch.cuda.graph."""
    graphs.append(recording)
    with recording:
        yield


def pretend() -> None:
    """Change what this process knows of CUDA."""
    from vizer_rl.policy.shared_prefix import cuda_graph

    cuda, accelerator = torch.cuda, torch.accelerator
    properties = SimpleNamespace(name=NAME, total_memory=MEMORY, major=9, minor=0)
    stream = SimpleNamespace(is_capturing=lambda: False)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "mem_get_info": (MEMORY, MEMORY),
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "get_device_properties": properties,
        "is_current_stream_capturing": False,
        "current_stream": stream,
    }
    answers |= dict.fromkeys([*NOTHING.split(), "set_device", "_lazy_init"]) | dict.fromkeys(
        BYTES.split(), 2**30
    )
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("is_available", "current_stream", "synchronize", "empty_cache"):
        setattr(accelerator, name, getattr(cuda, name))
    accelerator.current_device_index = lambda: 0
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    cuda.get_rng_state_all = lambda: [torch.get_rng_state()]
    cuda.set_rng_state_all = lambda states: torch.set_rng_state(states[0])
    cuda.device = lambda *_: nullcontext()
    cuda.random = cuda
    cuda.CUDAGraph, cuda.graph, cuda_graph.can_record = Recording, graph, on_gpu
    _pretend_files()


def _pretend_files() -> None:
    """Load files to the CPU and mark their tensors; autocast is the CPU's."""
    from_file, load, init = safetensors.torch.load_file, torch.load, autocast_mode.autocast.__init__

    def load_file(name: Any, device: Any = "cpu") -> Any:
        return {k: mark(v, is_cuda(device)) for k, v in from_file(name).items()}

    def torch_load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        wanted = isinstance(map_location, str | torch.device) and is_cuda(map_location)
        content = load(file, map_location="cpu" if wanted else map_location, **kwargs)
        for x in tree_leaves(content) if wanted else ():
            mark(x)
        return content

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    safetensors.torch.load_file = peft.utils.save_and_load.safe_load_file = load_file
    torch.load, autocast_mode.autocast.__init__ = torch_load, autocast


def main() -> None:
    """The command line, with so small a bank that a rollout holds images beyond it."""
    from rewards.lib import certain_words
    from vizer_rl import cli
    from vizer_rl.training import reward_bank

    pretend()
    reward_bank.MAX_CAPTIONED, certain_words.CAPTIONS = 40, 8
    with Functions(), Operations():
        code = cli.main(sys.argv[1:])
    print(f"{len(graphs)} graphs, {sum(g.replays for g in graphs)} replays")
    sys.exit(code)


if __name__ == "__main__":
    main()
