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
    name = f"generator{'_traced' * (form == 'torchscript')}{FORMATS[form]}"
    path = a.out or folder_of(a.run) / name
    apart = export(net, path, a.to, a.half)
    takes = {"z": ("N", net.latent_dim)} | ({"labels": ("N",)} if net.num_classes else {})
    print(f"{path}: {path.stat().st_size:,} bytes, within {apart:.1g} of PyTorch's images")
    print(f"It takes {takes}, and makes images {('N', net.channels, *net.image_size)}. To run it:")
    named = ", ".join(f"{name}={name}" for name in takes)
    code = {
        ".onnx": f"onnxruntime.InferenceSession('{path}').run(None, dict({named}))[0]",
        ".pt2": f"torch.export.load('{path}').module()({', '.join(takes)})",
        ".pt": f"torch.jit.load('{path}')({', '.join(takes)})",
        ".safetensors": f"tinygan.sampling.generate(tinygan.load_generator('{path}'), {named})",
    }
    print(code[FORMATS.get(a.to, path.suffix)])
