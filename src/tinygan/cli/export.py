"""``tinygan export``: a generator as a file for other programs."""

from __future__ import annotations

import argparse
from typing import Any

from tinygan.cli.loaded import folder_of
from tinygan.exporting import FORMATS, export
from tinygan.generators import load_generator


def run(a: argparse.Namespace) -> None:
    """Write it, and say what it takes and how it is run."""
    net: Any = load_generator(a.run)
    form = a.to or "onnx"
    # Not generator.pt, which may be weights that one has kept.
    name = f"generator{'_traced' * (form == 'torchscript')}{'_half' * a.half}{FORMATS[form]}"
    path = a.out or folder_of(a.run) / name
    apart = export(net, path, a.to, a.half)
    height, width = net.image_size
    names = ["z", "labels"] if net.num_classes else ["z"]
    print(f"{path}: {path.stat().st_size:,} bytes, within {apart:.1g} of PyTorch's images")
    takes = f"z (N, {net.latent_dim})" + ", labels (N,)" * (len(names) - 1)
    print(f"It takes {takes} and makes images (N, {net.channels}, {height}, {width}), in Python by")
    order, named = ", ".join(names), ", ".join(f"{name}={name}" for name in names)
    imports, call = {
        ".onnx": (
            "numpy, onnxruntime",
            f"onnxruntime.InferenceSession('{path}').run(None, dict({named}))[0]",
        ),
        ".pt": ("torch", f"torch.jit.load('{path}')({order})"),
        ".pt2": ("torch", f"torch.export.load('{path}').module()({order})"),
        ".safetensors": (
            "torch, tinygan",
            f"tinygan.sampling.generate(tinygan.load_generator('{path}'), {named})",
        ),
    }[FORMATS.get(a.to, path.suffix)]
    library, size = imports.partition(",")[0], f"4, {net.latent_dim}"
    noise = {"numpy": f"numpy.random.randn({size}).astype('float32')"}
    print(f"import {imports}\nz = {noise.get(library, f'torch.randn({size})')}")
    if net.num_classes:
        print(f"labels = {library}.arange(4) % {net.num_classes}")
    print(f"images = {call}")
