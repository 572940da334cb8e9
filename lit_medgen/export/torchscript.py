"""The network of a method as TorchScript: what runs without Python and without this package.

    network.pt    the traced network, for images of the size it was trained on: any number of them, or one at a time
    network.json  its inputs in order, what its output is, its SHA-256
    README.md     the model card

The network is called as it is in sampling: one sample is begun, and the arguments of the first call are its inputs. A
`Condition` among them becomes an input for each part. Only what is a pure function of tensors can be traced: networks
that read growing caches (autoregressive transformers), and methods whose networks are not called as functions, cannot.
The sampler stays out: it is a few lines around the network, which the owner of the other program writes.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_medgen import __version__
from lit_medgen.batch import Condition, DataSpec
from lit_medgen.errors import InputError, describe
from lit_medgen.export.card import Stated, model_card
from lit_medgen.files import replacing, write_atomically
from lit_medgen.training.generator import Generator

NETWORK, INPUTS, CARD = "network.pt", "network.json", "README.md"
TRACE_FILES = (NETWORK, INPUTS, CARD)
TOLERANCE = 1e-4
"""By which outputs of the traced network may differ from the network's, as a share of their largest."""
DEBUG = (".debug_pkl", "version", ".data/serialization_id")
"""Ends of names of records that are left out: sources with the folders of this machine; what the writer adds itself."""


class _FirstCallError(Exception):
    """Ends a sample at the first call of its network."""


@dataclass(frozen=True)
class Call:
    """A call of a network.

    Attributes:
        network: that is called.
        arguments: in order: tensors, conditions, None.
    """

    network: nn.Module
    arguments: tuple[Any, ...]

    def inputs(self) -> dict[str, Tensor]:
        """Name -> tensor, in order; the i-th argument, or a part of it."""
        found: dict[str, Tensor] = {}
        for i, argument in enumerate(self.arguments):
            if isinstance(argument, Tensor):
                times = i == 1 and argument.ndim == 1
                found["x" if i == 0 else "t" if times else f"input_{i}"] = argument
            elif isinstance(argument, Condition):
                found |= dict(_parts(argument))
            elif argument is not None:
                raise ValueError(f"it takes a {type(argument).__name__}, which is no tensor")
        return found

    def arguments_of(self, inputs: Sequence[Tensor]) -> list[Any]:
        """The arguments that inputs stand for."""
        waiting = iter(inputs)
        return [self._argument(each, waiting) for each in self.arguments]

    def _argument(self, like: Any, waiting: Iterator[Tensor]) -> Any:
        if isinstance(like, Tensor):
            return next(waiting)
        if not isinstance(like, Condition):
            return like
        values: dict[str, Any] = {"attributes": {}}
        for name, _ in _parts(like):
            part, _, attribute = name.partition(".")
            if attribute:
                values[part][attribute] = next(waiting)
            else:
                values[part] = next(waiting)
        return Condition(**values)


class Flat(nn.Module):
    """A network that is called with tensors alone."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.network, self.call = call.network, call

    def forward(self, *inputs: Tensor) -> Any:
        """What the network gives for the inputs, in the order of `Call.inputs`."""
        return self.network(*self.call.arguments_of(inputs))


def write_traced(folder: Path, model: Any, record: Mapping[str, Any], stated: Stated) -> None:
    """Writes the traced network; InputError for one that cannot be traced, or whose trace gives something else."""
    kind = type(model).__name__
    if not isinstance(model, Generator):
        raise InputError(f"--format torchscript: {kind} makes no images; export it as safetensors.")
    try:
        call = first_call(model)
        inputs = call.inputs()
        traced, num = traced_call(call)
    except ValueError as error:
        raise InputError(
            f"--format torchscript: {kind} cannot be traced: {describe(error)}; use safetensors."
        ) from error
    content = without_sources(traced)
    with replacing(folder / NETWORK, len(content)) as file:
        file.write(content)
    about = {
        "lit_medgen": __version__,
        "method": kind,
        "network": type(call.network).__name__,
        "sha256": file.sha256,
        "inputs": {name: {"shape": [num or "b", *x.shape[1:]], "dtype": _dtype(x)} for name, x in inputs.items()},
        "predicts": getattr(model, "parametrisation", None),
        "facts": {name: _plain(value) for name, value in record["facts"].items() if _plain(value) is not None},
    }
    write_atomically(folder / INPUTS, json.dumps(about, indent=2))
    write_atomically(folder / CARD, model_card(model, stated, list(_usage(inputs))))


def first_call(model: Generator) -> Call:
    """The first call of a network of the method in sampling two images; ValueError if none is called."""
    calls: list[Call] = []

    def catch(network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(Call(network, arguments))
        if named:
            raise ValueError(f"it is called with arguments by name ({', '.join(named)})")
        raise _FirstCallError

    handles = [network.register_forward_pre_hook(catch, with_kwargs=True) for network in model.networks_for_speed()]
    try:
        with torch.no_grad(), model.in_few_steps(1):
            model.sample(_example(model), [0, 1])
    except _FirstCallError:
        return calls[0]
    finally:
        for handle in handles:
            handle.remove()
    raise ValueError("none of its networks is called as a function in sampling")


def traced_call(call: Call) -> tuple[Any, int | None]:
    """The trace of a network, and the number of images that it takes: None for any, else 1.

    ValueError for a network that cannot be traced at all.
    """
    network, inputs = Flat(call).eval(), tuple(call.inputs().values())
    try:
        return trace(network, inputs, num_others=3), None
    except ValueError:  # the number of images is a constant of the trace where Python reads it as one
        return trace(network, tuple(each[:1] for each in inputs), num_others=1), 1


def trace(network: nn.Module, inputs: tuple[Tensor, ...], num_others: int) -> Any:
    """The trace of a network; ValueError if it gives something else for other values, of so many other images."""
    others = tuple(_other(each, num_others) for each in inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Of constants that follow from shapes, which the comparison below judges; of the age of TorchScript.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, inputs, check_trace=False)
            expected, found = network(*others), traced(*others)
    except (RuntimeError, TypeError, LookupError) as error:
        last = str(error).strip().rpartition("\n")[2][:160]
        raise ValueError(f"its steps depend on more than the values of tensors ({last})") from error
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor) or expected.shape != found.shape:
        raise ValueError("it gives something other than a tensor for each image")
    difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * max(largest, 1):
        raise ValueError(f"its trace differs by {difference:.2g} for other inputs")
    return traced


def without_sources(traced: Any) -> bytes:
    """A TorchScript module as a file, without the paths of the sources that it was traced from."""
    whole, kept = io.BytesIO(), io.BytesIO()
    torch.jit.save(traced, whole)
    reader = torch._C.PyTorchFileReader(io.BytesIO(whole.getvalue()))
    writer = torch._C.PyTorchFileWriter(kept)
    for name in reader.get_all_records():
        if not name.endswith(DEBUG):
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return kept.getvalue()


def _example(model: Generator) -> Condition:
    """A condition of two images with all that the method reads."""
    spec: DataSpec = model.needed_spec()
    fields_of: dict[str, Any] = {}
    if "label_map" in model.required:
        fields_of["label_map"] = torch.zeros(2, 1, *spec.size, dtype=torch.long)
    if "source" in model.required:
        size = spec.source_size or spec.size
        source = torch.zeros(2, len(spec.sources) or spec.channels, *size)
        fields_of["source"] = model.source_of(source) if model.reconstructs else source
    if model.reads_text:
        fields_of["text"] = torch.zeros(2, *spec.text_size)
    attributes = {name: torch.tensor(spec.attributes[name]) for name in model.attributes}
    return Condition(attributes=attributes, **fields_of)


def _parts(condition: Condition) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a condition, by `part` or `attributes.name`."""
    for name, value in condition.attributes.items():
        yield f"attributes.{name}", value
    for entry in fields(condition):
        value = getattr(condition, entry.name)
        if isinstance(value, Tensor):
            yield entry.name, value


def _other(x: Tensor, num: int) -> Tensor:
    """An input of so many images like those of another, with other values where they are no codes."""
    rows = x[[i % len(x) for i in range(num)]]
    if not rows.is_floating_point() or rows.isnan().any():
        return rows
    if rows.ndim == 1:  # times, or values of an attribute
        return rows * (0.9 - 0.1 * torch.arange(num))
    return rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """What JSON can say of a fact; None for large tensors and for what it cannot."""
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= 64 else None
    return value if isinstance(value, str | int | float | bool) else None


def _usage(inputs: Mapping[str, Tensor]) -> Iterator[str]:
    yield "```python"
    yield "import torch"
    yield ""
    yield f'network = torch.jit.load("{NETWORK}")'
    yield f"prediction = network({', '.join(name.replace('.', '_') for name in inputs)})"
    yield "```"
    yield ""
    yield f"`{INPUTS}` says the shape of each input (b: any number of images) and what is predicted. It is no sampler."
