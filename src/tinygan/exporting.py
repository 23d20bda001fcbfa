"""A generator as a file for other programs, compared with PyTorch before it is kept."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import catch_warnings  # PyTorch warns of formats of its own

import torch
from safetensors.torch import load_file

from tinygan import sampling
from tinygan._run import checks, disk
from tinygan.average import Average
from tinygan.nets.saved import save_generator

FORMATS = {
    "onnx": ".onnx", "torch.export": ".pt2", "torchscript": ".pt", "safetensors": ".safetensors",
}  # fmt: skip


def export(generator: Any, path: Path | str, to: str | None = None, half: bool = False) -> float:
    """Write a generator as a file for other programs; return how far its images are from PyTorch's.

    It takes ``z`` (N, Z) of float32, for nets with ``num_classes`` also ``labels`` (N,) of int64,
    and makes ``images`` of float32. ``to`` is "onnx", for browsers, TensorRT and others (needs
    ``tinygan[onnx]``), "torch.export", for PyTorch, "torchscript", its older format, or
    "safetensors", weights alone for ``load_generator``; None is what the suffix says. ``half``
    computes in float16: half the bytes, slow on CPUs. Raises ValueError, and keeps no file, if its
    images differ by over 1e-5, or 0.02 with ``half``.

    Examples:
        >>> import tinygan
        >>> difference = tinygan.export(tinygan.DCGANGenerator(16), "generator.pt")
    """
    path = checks.path("path", path)
    form = to or next((name for name, suffix in FORMATS.items() if suffix == path.suffix), "")
    if form not in FORMATS or path.suffix in {*FORMATS.values()} - {FORMATS[form]}:
        raise ValueError(
            f"path must end in .onnx, .pt2, .pt or .safetensors, as to= says, got '{path}', {to!r}."
        )
    checks.count("generator.latent_dim", getattr(generator, "latent_dim", None))
    for module in ("onnx", "onnxruntime", "onnxscript") if form == "onnx" else ():
        checks.require(module, extra="onnx", wanted_by="export to ONNX")
    draws, classes = torch.Generator().manual_seed(0), getattr(generator, "num_classes", None)
    noise = [sampling.normal(count, generator.latent_dim, draws) for count in (3, 1, 5)]
    tried = [(z, torch.arange(len(z), device="cpu") % classes) if classes else (z,) for z in noise]
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.renamed(path) as out, TemporaryDirectory() as folder, catch_warnings(action="ignore"):
        made = Path(folder, f"made{FORMATS[form]}")
        try:
            net = _copy(generator, torch.float16 if half else torch.float32)
            run, exact = _made(net, tried[0], form, made), _copy(generator, torch.float32)
            apart = float(torch.stack([(run(*x) - exact(*x)).abs().max() for x in tried]).max())
            if not apart <= (0.02 if half else 1e-5):  # NaN is not
                raise ValueError(f"the file's images differ by {apart:.2g}")
        except Exception as error:  # each format has its own; some are pages long
            reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition("! ")[0][:200]
            raise ValueError(
                f"generator must be one that PyTorch writes as {form} for any batch, got "
                f"{type(generator).__name__} ({reason}); in forward, use z.shape[0] for len(z), "
                f"no `if` on values and nothing random{', or leave half out' * half}."
            ) from None
        disk.write(out, disk.read(made))
    return apart


def _copy(generator: Any, dtype: torch.dtype) -> Any:
    """Return a copy, on the CPU, which takes and makes float32, whatever it computes in."""
    net = Average(generator, 1.0).net.to("cpu", dtype)  # as yet a copy, in evaluation mode
    net.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
    net.register_forward_hook(lambda _, inputs, images: images.float())
    return net


def _made(net: Any, inputs: tuple[torch.Tensor, ...], form: str, file: Path) -> Any:
    """Write a net as a file, for any batch of such inputs; return what its users call."""
    if form == "safetensors":
        save_generator(net, file)
        net.load_state_dict(load_file(file))
        return net
    if form == "torchscript":
        torch.jit.save(torch.jit.trace(net, inputs), file)
        return torch.jit.load(file)
    batch = {0: torch.export.Dim("N", min=1)}
    program = torch.export.export(net, inputs, dynamic_shapes=(batch,) * len(inputs))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and lines of code of this computer
    if form == "torch.export":
        torch.export.save(program, file)
        return torch.export.load(file).module()
    names = ("z", "labels")[: len(inputs)]
    torch.onnx.export(  # opset 18 is of 2022: browsers and TensorRT know it
        program, f=file, input_names=names, output_names=["images"], opset_version=18, dynamo=True,
        dynamic_shapes=({0: "N"},) * len(inputs), external_data=False, verbose=False,
    )  # fmt: skip
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda *inputs: torch.from_numpy(
        session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs)})[0]
    )
