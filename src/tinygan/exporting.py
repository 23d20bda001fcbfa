"""A generator as a file for other programs, compared with PyTorch before it is kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinygan import sampling
from tinygan._run import checks, disk
from tinygan.average import Average

FORMATS = {".onnx": "onnx", ".pt2": "torch.export", ".pt": "torchscript"}


def export(
    generator: Any, path: Path | str, to: str | None = None, half: bool = False
) -> tuple[Path, float]:
    """Write a generator as a file for other programs; return its path, and how exact it is.

    The file takes ``z`` (N, Z) of float32, for nets with ``num_classes`` also ``labels`` (N,) of
    int64, and makes ``images`` of float32. ``to`` is "onnx", for browsers, TensorRT and others
    (needs ``tinygan[onnx]``), "torch.export", for PyTorch, or "torchscript", its older format; or
    None: the suffix says it, .onnx, .pt2 or .pt. ``half`` computes in float16: half the bytes, fast
    on GPUs, slow on CPUs. The file's images, 1 and 5, may differ from the generator's by 1e-5, with
    ``half`` by 0.02, or else ValueError is raised, and nothing written.

    Examples:
        >>> import tinygan
        >>> path, difference = tinygan.export(tinygan.DCGANGenerator(16), "generator.pt")
    """
    path = checks.path("path", path)
    form = FORMATS.get(path.suffix) or str(to)
    if form not in FORMATS.values() or to not in (None, form):
        raise ValueError(
            f"path must end in {', '.join(FORMATS)}, for to={', '.join(FORMATS.values())}, got "
            f"'{path}' and {to!r}; leave to out, and use '{path.with_suffix('.onnx')}'."
        )
    checks.count("generator.latent_dim", getattr(generator, "latent_dim", None))
    for module in ("onnx", "onnxruntime", "onnxscript") if form == "onnx" else ():
        checks.require(module, extra="onnx", wanted_by="export to ONNX")
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.renamed(path) as file, warnings.catch_warnings(action="ignore"), torch.no_grad():
        try:
            exact, tried = _Float32(generator), [_inputs(generator, count) for count in (3, 1, 5)]
            _write(_Float32(generator, half), tried[0], Path(file.name), form)
            apart = [(_images(Path(file.name), form, x) - exact(*x)).abs().max() for x in tried]
            difference = float(torch.stack(apart).max())
            if not difference <= (0.02 if half else 1e-5):  # NaN is not
                raise ValueError(f"its images differ by {difference:.2g}")
        except Exception as error:  # each format has its own; some are pages long
            reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition("! ")[0][:200]
            raise ValueError(
                f"generator must be a net that PyTorch can write as {form} for any batch, got "
                f"{type(generator).__name__} ({reason}); in its forward, use z.shape[0] for "
                f"len(z), no `if` on values and nothing random{', or leave half out' * half}."
            ) from None
    return path, difference


class _Float32(nn.Module):
    """A copy of a generator, on the CPU, from float32 to float32, whatever it computes in."""

    def __init__(self, generator: nn.Module, half: bool = False) -> None:
        super().__init__()
        self.dtype: Any = torch.float16 if half else torch.float32
        # The average of one net is a copy of it, in evaluation mode.
        self.net = Average(generator, 1.0).net.to("cpu", self.dtype)

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        images: torch.Tensor = self.net(z.to(self.dtype), *(() if labels is None else (labels,)))
        return images.float()


def _inputs(generator: Any, count: int) -> tuple[torch.Tensor, ...]:
    """Return noise for a generator, and labels if it takes them."""
    z = sampling.normal(count, generator.latent_dim, torch.Generator().manual_seed(count))
    num_classes = getattr(generator, "num_classes", None)
    return (z,) if num_classes is None else (z, torch.arange(count) % num_classes)


def _write(net: nn.Module, inputs: tuple[torch.Tensor, ...], file: Path, form: str) -> None:
    """Write a file that makes a net's images of any batch of such inputs."""
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(net, inputs), file)
        return
    batch = {0: torch.export.Dim("N", min=1)}
    program = torch.export.export(net, inputs, dynamic_shapes=(batch,) * len(inputs))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and lines of code of this computer
    if form == "torch.export":
        torch.export.save(program, file)
        return
    names, shapes = ("z", "labels")[: len(inputs)], ({0: "N"},) * len(inputs)
    torch.onnx.export(  # opset 18 is of 2022: browsers and TensorRT know it
        program, f=file, input_names=names, output_names=["images"], dynamic_shapes=shapes,
        opset_version=18, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def _images(file: Path, form: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the images that a file makes, run as its users do."""
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = {name: tensor.numpy() for name, tensor in zip(("z", "labels"), inputs)}
        return torch.from_numpy(session.run(["images"], given)[0])
    net = torch.jit.load(file) if form == "torchscript" else torch.export.load(file).module()
    images: torch.Tensor = net(*inputs)
    return images
