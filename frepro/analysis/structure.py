"""The computation of a module as a graph, recorded while the module runs.

Boxes, numbers and names come from the module itself: submodules report their sizes, calls of ``frepro.ops`` and of
torch functions are recorded, and shapes are those of the actual tensors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce, singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.layers import Mlp as TimmMlp
from timm.models.metaformer import MlpHead, Scale
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frepro import ops
from frepro.analysis.operations import replaced
from frepro.models.layers import Mlp
from frepro.models.metaformer import Downsampling
from frepro.models.spanet import SPAM, SpectralPooling
from frepro.models.spanetv2 import Attention
from frepro.models.vim import BidirectionalMamba

# Functions that move values without changing them: an edge passes through them.
MOVES = {
    *(
        "__getitem__",
        "contiguous",
        "detach",
        "expand",
        "expand_as",
        "flatten",
        "movedim",
        "permute",
        "reshape",
        "select",
    ),
    *("squeeze", "to", "transpose", "unflatten", "unsqueeze", "view", "view_as"),
}
SPLITS = {"chunk", "split", "unbind"}
SIGNS = {"add": "+", "__radd__": "+", "mul": "×", "__rmul__": "×", "matmul": "@"}
FILTERS = {  # operations on spectra, and the scan
    *("amplitude_spectrum", "dynamic_filter", "global_filter", "selective_scan", "spectral_pool", "spectral_rescale"),
}
NAMES = {"cat": "concatenate", "scaled_dot_product_attention": "attention", "silu": "SiLU"}


@dataclass
class Node:
    """A box.

    Attributes:
        kind: "input", "output", "filter" (on a spectrum, or a scan), "module", "function" or "sign" (+ or ×).
        title: What it does.
        name: Its name in the module, or the names and shapes of the parameters that it uses.
        sources: The boxes whose outputs it takes.
        shape: Shape of its output, without the batch.
        same_shape: Whether all of its inputs have that shape too.
        count: Number of equal consecutive modules that it represents.
    """

    kind: str
    title: str
    name: str = ""
    sources: list["Node"] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    same_shape: bool = False
    count: int = 1


def dataflow(module: nn.Module, *inputs: Tensor, closed: tuple[type, ...] = ()) -> list[Node]:
    """Return the graph of one forward pass in the order of execution; input first, output last.

    Args:
        inputs: Inputs on the device of the module; "meta" is sufficient.
        closed: Classes that are drawn as one box each. Modules of torch and timm always are, except containers.
    """
    recorder = _Recorder(module, closed)
    with recorder.hooks(), torch.no_grad(), replaced(ops.__all__, recorder.stand_in, module), recorder:
        for tensor in inputs:
            recorder.start(tensor)
        output = module(*inputs)
    recorder.add(Node("output", "output"), [output], output)
    return _rows_as_one(_reached(recorder.nodes))


class _Recorder(TorchFunctionMode):
    """Records torch functions as a function mode, modules by hooks, and operations by replacing them."""

    def __init__(self, root: nn.Module, closed: tuple[type, ...]) -> None:
        self.nodes: list[Node] = []
        self.origins: dict[int, Node] = {}  # of tensors that depend on the input, by id
        self.labels: dict[int, str] = {}  # of parameters and tensors computed from them alone, by id
        self.alive: list[Any] = []  # keeps ids unique
        self.inside = 0  # nesting depth in closed boxes
        self.root = root
        self.closed = closed
        for name, parameter in root.named_parameters():
            self.labels[id(parameter)] = f"{name}  {shape_text(parameter.shape)}"
        for name, module in root.named_modules():
            if isinstance(module, SpectralPooling):  # two numbers determine its mask
                self.labels[id(module.filter)] = f"{name}  radius {module.radius}, λ {module.balance}"

    def start(self, tensor: Tensor) -> None:
        node = Node("input", "input", shape=tuple(tensor.shape[1:]))
        self.nodes.append(node)
        self._keep(tensor, node)

    def add(self, node: Node, inputs: Iterable[Any], outputs: Any) -> None:
        """Record a box that computes ``outputs`` from those ``inputs`` that depend on the module's input.

        What depends on parameters alone gets no box, but keeps their label.
        """
        tensors = list(_tensors(inputs))
        fed = [t for t in tensors if id(t) in self.origins]
        made = list(_tensors([outputs]))
        node.sources = list({id(node): node for node in (self.origins[id(t)] for t in fed)}.values())
        node.shape = tuple(made[0].shape[1:])
        node.same_shape = node.kind != "output" and all(t.shape == made[0].shape for t in fed)
        labels = _brief([self.labels[id(t)] for t in tensors if id(t) in self.labels])
        if node.sources:
            node.name = node.name or labels
            self.nodes.append(node)
            for tensor in made:
                self._keep(tensor, node)
        elif labels:
            for tensor in made:
                self._label(tensor, f"{node.title}({labels})" if node.name else labels)

    def _keep(self, tensor: Tensor, node: Node) -> None:
        self.origins[id(tensor)] = node
        self.alive.append(tensor)

    def _label(self, tensor: Tensor, label: str) -> None:
        self.labels[id(tensor)] = label
        self.alive.append(tensor)

    def _pass_on(self, source: Tensor, outputs: Any) -> None:
        for tensor in _tensors([outputs]):
            if id(source) in self.origins:
                self._keep(tensor, self.origins[id(source)])
            elif id(source) in self.labels:
                self._label(tensor, self.labels[id(source)])

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if self.inside or not list(_tensors([outputs])):
            return outputs
        inputs = [*args, *(kwargs or {}).values()]
        if name in MOVES:
            self._pass_on(args[0], outputs)
            if name == "__getitem__" and id(args[0]) in self.labels and args[0].ndim == 1:
                self._label(outputs, f"{self.labels[id(args[0])].partition('  ')[0]}[{args[1]}]")
            return outputs
        if name in SPLITS:
            self._split(args[0], outputs)
            return outputs
        if name == "linear":
            self.add(self._linear(args[1]), inputs, outputs)
            return outputs
        title = f"lerp {args[2]}" if name == "lerp" else NAMES.get(name, name.strip("_"))
        self.add(Node("sign", SIGNS[name]) if name in SIGNS else Node("function", title), inputs, outputs)
        return outputs

    def _linear(self, weight: Tensor) -> Node:
        """Return a linear map without a module. Its title has the sizes, so the name of the weight suffices."""
        return Node("module", _linear(weight), self.labels.get(id(weight), "").partition("  ")[0])

    def _split(self, source: Tensor, parts: Any) -> None:
        """Record a box with the number of channels of each part; none if only parameters are split."""
        sizes = zip(*(part.shape for part in parts), strict=True)
        changed = [
            parts_size for size, parts_size in zip(source.shape, sizes, strict=False) if {size} != set(parts_size)
        ]
        node = Node("function", "split into\n" + ", ".join(map(str, changed[0])))
        self.add(node, [source], parts)
        node.same_shape = True  # the title shows the sizes

    def stand_in(self, name: str, operation: Callable) -> Callable:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if name == "pooled_linear" and not self.inside:
                return self._gates(*args)
            self.inside += 1
            outputs = operation(*args, **kwargs)
            self.inside -= 1
            if not self.inside:
                flags = [key for key, value in kwargs.items() if value is True and key != "inplace"]
                title = "\n".join([name, ", ".join(flags)]) if flags else name
                node = Node("filter" if name in FILTERS else "module", title)
                self.add(self._linear(args[1]) if name == "linear" else node, [*args, *kwargs.values()], outputs)
            return outputs

        return recorded

    def _gates(self, x: Tensor, masks: Any, radius: float, weights: Any, bias: Tensor) -> Tensor:
        """Record ``pooled_linear`` as the gates that it implements; as in all boxes, biases are not shown."""
        pool = self.stand_in("spectral_pool", ops.spectral_pool)
        parts = x.split([weight.shape[1] for weight in weights], dim=3)
        gates = [F.linear(pool(part, mask), weight) for part, mask, weight in zip(parts, masks, weights, strict=True)]
        return reduce(torch.add, gates)

    def hooks(self) -> "_Hooks":
        return _Hooks(self)

    def is_closed(self, module: nn.Module) -> bool:
        if isinstance(module, self.closed):
            return True
        if isinstance(module, Mlp):
            return True
        base = next(base for base in type(module).__mro__ if not base.__module__.startswith("frepro."))
        return base not in (nn.Module, nn.Sequential, nn.ModuleList)


class _Hooks:
    """Context with hooks on every closed module."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        lent = {inner for module in self.recorder.root.modules() for inner in _lent(module)}
        for name, module in self.recorder.root.named_modules():
            if module is not self.recorder.root and self.recorder.is_closed(module) and module not in lent:
                self.handles.append(module.register_forward_pre_hook(self._before))
                self.handles.append(module.register_forward_hook(self._after(name)))

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        self.recorder.inside += 1

    def _after(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            recorder = self.recorder
            recorder.inside -= 1
            if recorder.inside:
                return
            if isinstance(module, nn.Identity | nn.Dropout | DropPath):
                recorder._pass_on(inputs[0], output)
            else:
                recorder.add(Node("module", describe(module), name), inputs, output)

        return hook


def _lent(module: nn.Module) -> list[nn.Module]:
    """Layers of a mixer that lend their weights to an operation, as long as no hook waits for their call."""
    if isinstance(module, BidirectionalMamba):
        return [module.conv1d, module.conv1d_b, module.dt_proj, module.dt_proj_b]
    return list(module.pws) if isinstance(module, SPAM) and module.is_pooled_at_once else []


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _brief(labels: list[str]) -> str:
    """Join several labels; of more than two of a kind, only the first and the last."""
    labels = list(dict.fromkeys(labels))
    if len(labels) > 2 and len({label.partition("  ")[0].rstrip("0123456789") for label in labels}) == 1:
        return f"{labels[0].partition('  ')[0]} … {labels[-1]}"
    return "\n".join(labels)


def _reached(nodes: list[Node]) -> list[Node]:
    """Return the nodes that the last one depends on."""
    wanted = {id(nodes[-1])}
    for node in reversed(nodes):
        if id(node) in wanted:
            wanted |= {id(source) for source in node.sources}
    return [node for node in nodes if id(node) in wanted or node.kind == "input"]


def _rows_as_one(nodes: list[Node]) -> list[Node]:
    """Merge a chain of equal modules, each fed by the previous one alone, into one box."""
    users: dict[int, int] = {}
    for node in nodes:
        for source in node.sources:
            users[id(source)] = users.get(id(source), 0) + 1
    stands_for: dict[int, Node] = {}
    kept: list[Node] = []
    for node in nodes:
        node.sources = [stands_for.get(id(source), source) for source in node.sources]
        before = node.sources[0] if len(node.sources) == 1 else None
        if (
            before is not None
            and node.kind == "module"
            and (before.kind, before.title) == (node.kind, node.title)
            and before is kept[-1]
            and users[id(before)] == before.count
        ):
            before.count += 1
            users[id(before)] = before.count + users[id(node)] - 1
            stands_for[id(node)] = before
            before.name = f"{before.name.partition(' … ')[0]} … {node.name}"
        else:
            kept.append(node)
    return kept


def mixer(module: nn.Module) -> nn.Module | None:
    """Return the token mixer of a block; ``None`` for a module that is not a block."""
    found = [vars(module)["_modules"].get(name) for name in ("token_mixer", "mixer", "filter")]
    return next((inner for inner in found if inner is not None), None)


def shape_text(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))


def _linear(weight: Tensor) -> str:
    return f"linear {weight.shape[1]} → {weight.shape[0]}"


@singledispatch
def describe(module: nn.Module) -> str:
    """Return a short description of a module as a box's title: its class and, for a block, its token mixer."""
    inner = mixer(module)
    return type(module).__name__ if inner is None else f"{type(module).__name__}\nwith {describe(inner)}"


@describe.register
def _(module: nn.Conv2d | nn.Conv1d) -> str:
    stride = f", stride {module.stride[0]}" if max(module.stride) > 1 else ""
    kernel = f"conv {shape_text(module.kernel_size)}{stride}"
    if module.groups == module.in_channels == module.out_channels > 1:
        return f"{kernel}\ndepthwise"
    groups = f"\n{module.groups} groups" if module.groups > 1 else ""
    return f"{kernel}\n{module.in_channels} → {module.out_channels}{groups}"


@describe.register
def _(module: nn.Linear) -> str:
    return _linear(module.weight)


@describe.register
def _(module: Mlp | TimmMlp | MlpHead | Downsampling) -> str:
    parts = [part for part in module.children() if not isinstance(part, nn.Identity | nn.Dropout)]
    return "\n".join(describe(part).replace("\n", ", ") for part in parts)


@describe.register
def _(module: Scale) -> str:
    return f"scale {shape_text(module.scale.shape)}"


@describe.register
def _(module: Attention) -> str:
    return "Attention" if module.local_conv is None else "Attention beside\n" + describe(module.local_conv)
