"""A device without a card: its tensors lie on the CPU, and it is as strict about devices as CUDA.

`install` registers a device type of its own with torch, for good: only in a process that does nothing else. Under
`Rules` everything that is computed is looked at before it is done:

- a tensor of the CPU beside one of the device, or a CPU generator for the device, is the error that CUDA makes of it;
- what makes the CPU wait for a card in a training step is noted, with its place in our code: a copy that is not sent
  ahead (``non_blocking``, from pinned memory where it is not small), and everything whose outcome the CPU must know
  (``item``, a mask as index). Copies that are sent ahead are noted, too, apart from these.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer
from torch.utils import _foreach_utils, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.machine import transfer

NAME = "pretend"
CPU = torch.device("cpu")
COPIES = {"aten._to_copy", "aten.copy_", "aten.copy", "aten._copy_from"}
INDEXING = ("aten.index.", "aten.index_put", "aten._index_put_impl", "aten._unsafe_index")
# They take a number from the device, or the size of what they give depends on values.
ASKING = {
    *("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal"),
    *("aten.nonzero", "aten.masked_select", "aten.bincount", "aten.repeat_interleave.Tensor"),
    *("aten._unique2", "aten.unique_dim", "aten.unique_consecutive"),
}
# A CPU tensor without dimensions is a number to every operation but these.
NO_NUMBERS = ("aten.cat", "aten.stack", "aten.gather", "aten.scatter", "aten.index_select")

# What made the CPU wait within a step of `loop.fit`: (what, file:function) -> how often.
waits: Counter[tuple[str, str]] = Counter()
# Where a copy was sent ahead within a step: file:function -> how often.
sent: Counter[str] = Counter()


class DeviceRuleError(RuntimeError):
    """What a card would refuse."""


def device() -> torch.device:
    return torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor of the device; ``values`` is what it holds, on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=device(), requires_grad=requires_grad,
        )  # fmt: skip
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Any = OnDevice(self.values.detach().clone(), self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter(self) else copied
        return memo[id(self)]

    def tolist(self) -> Any:
        note("a value is asked for")
        return self.values.detach().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise DeviceRuleError("numpy() of a tensor of the device")

    def data_ptr(self) -> int:
        return self.values.data_ptr()


def is_parameter(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) or getattr(tensor, "_is_param", False)


class Rules(TorchDispatchMode):
    """Also what only makes a tensor of the device, from none, is seen within."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = is_ours(kwargs.get("device")) or any(isinstance(item, OnDevice) for item in leaves(args, kwargs))
        return compute(function, args, kwargs) if here else function(*args, **kwargs)


def is_ours(place: Any) -> bool:
    return place is not None and torch.device(place).type == NAME


def place() -> str:
    """The function of ours that asked: the innermost of trainables/."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        _, found, file = frame.f_code.co_filename.rpartition("/trainables/")
        if found and "/tests/" not in frame.f_code.co_filename:
            return f"{file}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "a thread of autograd"


def note(what: str) -> None:
    if in_a_step():
        waits[what, place()] += 1


def in_a_step() -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None and not (
        frame.f_code.co_name == "fit" and frame.f_code.co_filename.endswith("training/loop.py")
    ):
        frame = frame.f_back
    return frame is not None


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.clone()
    copied.is_pinned_here = True  # type: ignore[attr-defined]
    return copied


def compute(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Check, note, and do it on the CPU."""
    name, wanted = str(function), kwargs.get("device")
    short = name.rpartition(".")[0]
    tensors = [item for item in leaves(args, kwargs) if isinstance(item, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if wanted is not None and torch.device(wanted).type == "meta":
        return function(*mapped(to_cpu, args), **kwargs)
    if short in COPIES:
        return copy(function, short, args, kwargs)
    check(name, args, kwargs, [tensor for tensor in tensors if not isinstance(tensor, OnDevice)], ours)
    if short in ASKING or name in ASKING:
        note("a value is asked for")
    result = function(*mapped(to_cpu, args), **mapped(to_cpu, kwargs))
    known = {id(tensor.values): tensor for tensor in ours}
    stays = bool(ours) if wanted is None else is_ours(wanted)

    def wrap(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or isinstance(item, OnDevice):
            return item
        return known.get(id(item)) if id(item) in known else OnDevice(item) if stays else item

    return mapped(wrap, result)


# An operation's arguments are lists of tensors at most: torch's own functions for trees take most of the time here.
def leaves(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    for item in (*args, *kwargs.values()):
        if isinstance(item, list | tuple):
            found += item
        else:
            found.append(item)
    return found


def mapped(function: Callable[[Any], Any], things: Any) -> Any:
    if isinstance(things, Mapping):
        return {key: mapped(function, item) for key, item in things.items()}
    if isinstance(things, list | tuple):
        return type(things)([mapped(function, item) for item in things])
    return function(things)


def to_cpu(item: Any) -> Any:
    if isinstance(item, OnDevice):
        return item.values
    return CPU if isinstance(item, torch.device) and item.type == NAME else item


def check(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], strangers: list[torch.Tensor], ours: list[OnDevice]
) -> None:
    if kwargs.get("generator") is not None and (ours or is_ours(kwargs.get("device"))):
        raise DeviceRuleError(f"{name}: a generator of the CPU for the device, in {place()}")
    if not ours:
        return
    indexing = name.startswith(INDEXING)
    if indexing and not isinstance(args[0], OnDevice):
        raise DeviceRuleError(f"{name}: a tensor of the CPU indexed by one of the device, in {place()}")
    for tensor in strangers:
        if indexing:
            note("indices come from the CPU")
        elif tensor.dim() > 0 or name.startswith(NO_NUMBERS):
            shape = tuple(tensor.shape)
            raise DeviceRuleError(f"{name}: a tensor of the CPU, {shape}, beside one of the device, in {place()}")
    if indexing and any(getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in args[1]):
        note("a mask is an index")


def copy(function: Any, short: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Between the device and the CPU, or within one of them."""
    makes_one = short == "aten._to_copy"
    source = args[0] if makes_one or short == "aten._copy_from" else args[1]
    target = None if makes_one else args[1] if short == "aten._copy_from" else args[0]
    came, wanted = isinstance(source, OnDevice), kwargs.get("device")
    goes = isinstance(target, OnDevice) if target is not None else came if wanted is None else is_ours(wanted)
    ahead = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2] is True)
    ahead = ahead and (source.nbytes <= transfer.SENT_AT_ONCE or hasattr(source, "is_pinned_here"))
    if goes and not came and not ahead:
        note("a copy to the device is waited for")
    elif goes and not came and in_a_step():
        sent[place()] += 1
    if came and not goes:
        note("a value is asked for")
    if target is not None:
        to_cpu(target).copy_(to_cpu(source))
        return target
    made = function(to_cpu(source), **mapped(to_cpu, kwargs))
    made = made.clone() if made is to_cpu(source) else made
    return OnDevice(made) if goes else made


def install() -> None:
    """Make torch know the device; once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    torch.__future__.set_swap_module_params_on_conversion(True)
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for module in (_foreach_utils, torch_optimizer):
        for kind in ("fused", "foreach"):
            name = f"_get_{kind}_kernels_supported_devices"
            if hasattr(module, name):
                setattr(module, name, _also_ours(getattr(module, name)))
    torch.autocast = _autocast  # type: ignore[assignment, misc]
    torch.Tensor.pin_memory = pinned  # type: ignore[assignment, method-assign]


_kept: list[torch.library.Library] = []
_real_autocast = torch.autocast


def _also_ours(known: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: [*known(), NAME]


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """The device has float32 alone."""
    return contextlib.nullcontext() if device_type == NAME else _real_autocast(device_type, *args, **kwargs)


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    return OnDevice(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if not isinstance(source, OnDevice) and not non_blocking:
        note("a copy to the device is waited for")
    to_cpu(target).copy_(to_cpu(source))
    return target
