"""Live bytes of a computation on fake tensors, which have shape and type but no memory."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that come to life inside it: `now` alive, at most `peak`."""

    def __init__(self, module: nn.Module | None = None) -> None:
        """`module`: its parameters and buffers are not counted, nor views of them."""
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}
        for x in [*module.parameters(), *module.buffers()] if module else []:
            self._alive[x.untyped_storage()._cdata] = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, output)
        return output

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage, lambda _: self._free(key, size))

    def _free(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size


def fake_tensors(module: nn.Module, mode: FakeTensorMode) -> Any:
    """A module of the meta device, its parameters and buffers now fake tensors of the CPU."""
    replaced: dict[int, tuple[Tensor, Tensor]] = {}  # by id; the old one keeps its id taken

    def fake(old: Tensor) -> Tensor:
        if id(old) not in replaced:
            new: Tensor = torch.empty(old.shape, dtype=old.dtype, device="cpu")
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            replaced[id(old)] = new, old
        return replaced[id(old)][0]

    with mode:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, old in tensors.items():
                    if old is not None:
                        tensors[name] = fake(old)  # type: ignore[assignment]
    return module
