"""A generator as a file for other programs, compared with PyTorch before it is kept."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tinygan import sampling
from tinygan._run import checks, disk
from tinygan.nets.traits import copied

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch.export": ".pt2"}


class Exported(NamedTuple):
    """The file that ``export`` wrote, and how far its images were from PyTorch's at most."""

    path: Path
    difference: float


def export(
    generator: nn.Module, path: Path | str, to: str | None = None, half: bool = False
) -> Exported:
    """Write a generator as a file that needs no tinygan, for batches of any size.

    It takes ``z`` (N, Z) of float32, and of nets with ``num_classes`` also ``labels`` (N,) of
    int64; it makes ``images`` of float32. The generator, which says its ``latent_dim``, stays as it
    is. The file is loaded, and its 1 and 5 images compared with the generator's: they may differ by
    1e-5, with ``half`` by 0.02. It is written whole, or not at all.

    ``to`` is "onnx", for browsers, TensorRT and others (needs ``tinygan[onnx]``), "torch.export",
    for PyTorch, or "torchscript", PyTorch's older format; or the suffix says it: .onnx, .pt2, .pt.
    ``half`` computes in float16: half the bytes, fast on GPUs, slow on CPUs. Raises ValueError for
    nets that cannot be written so, ImportError without onnx, and OSError of the disk.

    Examples:
        >>> import tinygan
        >>> written = tinygan.export(tinygan.DCGANGenerator(16), "generator.pt")
    """
    path = checks.path("path", path)
    suffixes = ", ".join(SUFFIXES.values())
    form = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix), to)
    if form not in SUFFIXES or to not in (None, form):
        raise ValueError(
            f"to must be one of {', '.join(SUFFIXES)}, whose files end in {suffixes}, got {to!r} for "
            f"'{path}'; use '{path.with_suffix('.onnx')}' alone."
        )
    if not hasattr(generator, "latent_dim"):
        raise ValueError(
            "generator must be a net with latent_dim, the length of z, got "
            f"{type(generator).__name__} without; set generator.latent_dim = 100."
        )
    for module in ("onnx", "onnxruntime", "onnxscript") if form == "onnx" else ():
        checks.require(module, extra="onnx", wanted_by="export to ONNX")
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.renamed(path) as file, _quiet(), torch.no_grad():
        try:
            exact = _Float32(generator, torch.float32)
            net = _Float32(generator, torch.float16) if half else exact
            disk.write(file, _content(net, _inputs(generator, 3), form))
            run = _loaded(disk.read(Path(file.name)), form)
            several = _inputs(generator, 1), _inputs(generator, 5)
            apart = [(run(*inputs) - exact(*inputs)).abs().max() for inputs in several]
        except OSError:
            raise
        except Exception as error:  # each format has its own; some are pages long
            reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition("! ")[0]
            raise ValueError(
                f"generator must be a net that PyTorch can write to {form} for any batch, got "
                f"{type(generator).__name__} ({reason[:200]}); in its forward, use z.shape[0] for "
                "len(z), and no `if` on values."
            ) from None
        difference, most = torch.stack(apart).max().item(), 0.02 if half else 1e-5
        if not difference <= most:  # NaN is not
            raise ValueError(
                f"images of the file must differ by at most {most} from the generator's, got "
                f"{difference:.2g}; draw no random numbers in forward, and leave half out."
            )
    return Exported(path, difference)


class _Float32(nn.Module):
    """A copy of a generator, on the CPU, that takes and makes float32, whatever it computes in."""

    def __init__(self, generator: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        # It may have trained in channels last, which not every format knows.
        self.net = copied(generator).to("cpu", dtype, memory_format=torch.contiguous_format)
        self.eval().dtype = dtype

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        images: torch.Tensor = self.net(z.to(self.dtype), *(() if labels is None else (labels,)))
        return images.float()


def _inputs(generator: Any, count: int) -> tuple[torch.Tensor, ...]:
    """Return noise for a generator, and labels if it takes them."""
    z = sampling.normal(count, generator.latent_dim, torch.Generator().manual_seed(count))
    num_classes = getattr(generator, "num_classes", None)
    return (z,) if num_classes is None else (z, torch.arange(count) % num_classes)


def _content(net: nn.Module, inputs: tuple[torch.Tensor, ...], form: str) -> bytes:
    """Return the bytes of a file that computes what a net computes of such inputs."""
    file, names = io.BytesIO(), ("z", "labels")[: len(inputs)]
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(net, inputs), file)
        return file.getvalue()
    batch = {0: torch.export.Dim("N", min=1)}
    program = torch.export.export(net, inputs, dynamic_shapes=(batch,) * len(inputs))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and lines of code of this computer
    if form == "torch.export":
        torch.export.save(program, file)
        return file.getvalue()
    model: Any = torch.onnx.export(
        program, input_names=names, output_names=["images"], dynamic_shapes=({0: "N"},) * len(names),
        dynamo=True, opset_version=18, verbose=False,  # of 2022: TensorRT and browsers know it
    )  # fmt: skip
    content: bytes = model.model_proto.SerializeToString()
    return content


def _loaded(content: bytes, form: str) -> Callable[..., torch.Tensor]:
    """Return what runs a file: tensors to images."""
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        return lambda *inputs: torch.from_numpy(
            session.run(["images"], {name: x.numpy() for name, x in zip(names, inputs)})[0]
        )
    file = io.BytesIO(content)
    return torch.jit.load(file) if form == "torchscript" else torch.export.load(file).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from users what PyTorch says of its formats, and logs of nets that it cannot write."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
