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
    size, classes = f"4, {net.latent_dim}", net.num_classes
    print(f"{path}: {path.stat().st_size:,} bytes, within {apart:.1g} of PyTorch's images")
    print(f"It takes z (N, {net.latent_dim})" + ", labels (N,)" * bool(classes), end="")
    print(
        f" and makes images {('N', net.channels, *net.image_size)}, in Python by".replace("'", "")
    )
    suffix = FORMATS.get(a.to, path.suffix)
    if suffix == ".onnx":
        print("import numpy, onnxruntime")
        print(f"inputs = {{'z': numpy.random.randn({size}).astype('float32')}}")
        if classes:
            print(f"inputs['labels'] = numpy.arange(4) % {classes}")
        print(f"images = onnxruntime.InferenceSession('{path}').run(None, inputs)[0]")
        return
    labels = f", torch.arange(4) % {classes}" if classes else ""
    print("import torch" + ", tinygan" * (suffix == ".safetensors"))
    if suffix == ".safetensors":
        labels = labels.replace(", ", ", labels=")
        call = f"tinygan.sampling.generate(tinygan.load_generator('{path}'), z{labels})"
    elif suffix == ".pt":
        call = f"torch.jit.load('{path}')(z{labels})"
    else:
        call = f"torch.export.load('{path}').module()(z{labels})"
    print(f"z = torch.randn({size})\nimages = {call}")
