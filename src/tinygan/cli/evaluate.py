"""``tinygan evaluate``: a generator's images compared with real ones, in numbers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tinygan import data, metrics, sampling, seeds
from tinygan._run import batches as batches_of
from tinygan._run import checks, notebook
from tinygan.cli.loaded import generator_of
from tinygan.nets import traits

BATCH = 100
PARTS, LEAST = 5, 10


def run(a: argparse.Namespace) -> None:
    """Print FID, KID, precision and recall of N images, with errors, beside those of real ones."""
    generator: Any = generator_of(a)
    real = _real(a.real, generator.image_size, generator.channels)
    count = min(checks.count("-n", a.count, at_least=LEAST), len(real) // 2)
    if count < LEAST:
        raise ValueError(f"--real must hold 20 images or more, got {len(real)}; add more.")
    checks.require("torch_fidelity", extra="metrics", wanted_by="evaluate")  # before it takes long
    device = traits.example(generator).device
    if a.features == "inception":
        net = metrics.inception(weights=a.weights, device=device)
    elif a.features == "lite":
        net = metrics.lite(device=device)
    else:
        net = metrics.random_net(generator.channels).to(device)
    loader = data.Loader(real, min(BATCH, len(real)), seed=a.seed, workers=2)
    with notebook.bar(total=3 * count, unit=" images", leave=False) as bar:
        known = metrics.features(_counted(_first(loader, 2 * count), bar), net)
        made = metrics.features(_counted(_made(generator, count, a.seed), bar), net)
    if a.features == "random":  # or a few loud features would decide
        mean, deviation = known.mean(0), known.std(0)
        deviation = deviation.clamp(min=float(deviation.median()) / 10)  # some hardly vary
        known, made = (known - mean) / deviation, (made - mean) / deviation
    # FID and KID are of Inception's features alone.
    inception = a.features == "inception"
    fid, kid = ("FID", "KID") if inception else (f"FD-{a.features}", f"KD-{a.features}")
    print(
        f"{count} images of each kind, by {a.features} features of {known.shape[1]} numbers; "
        f"± is the standard error\n{'':14}{fid:>18}{kid:>20}{'precision':>16}{'recall':>16}"
    )
    for name, images in {"generated": made, "real": known[count:]}.items():
        found = metrics.with_errors(known[:count], images, parts=PARTS)
        texts = (f"{value:.4g} ± {error:.2g}" for value, error in found.values())
        print(f"{name:14}" + "".join(f"{t:>{w}}" for t, w in zip(texts, (18, 20, 16, 16))))
    print("The second line is the best that can be had: other real images in place of generated.")
    if count <= known.shape[1]:
        print(f"{fid} of {count} images means nothing: it needs more images than features.")
    if not inception:
        print("These are not the published FID and KID: compare them only with each other.")


def _real(root: str, size: tuple[int, int], channels: int) -> Any:
    """Open real images as a generator has them."""
    if root == "-":
        return data.CartoonFaces(4000, size, channels, seed=1)
    if Path(root).suffix == ".npy":
        packed = data.open_packed(root)
        if (found := packed.pixels.shape[1:]) != (channels, *size):
            raise ValueError(
                f"--real must have images {(channels, *size)} for this generator, got "
                f"{tuple(found)} in {root}; give the folder of images, or pack them for it."
            )
        return packed
    return data.image_folder(root, size, channels)


def _first(loader: data.Loader, count: int) -> Iterator[torch.Tensor]:
    """Yield batches of real images, of so many in all."""
    for images in map(batches_of.images, loader):
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return


def _made(generator: Any, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches of generated images, of each class in turn."""
    prior = getattr(generator, "prior", sampling.normal)
    z = prior(count, generator.latent_dim, seeds.generator(seed, "evaluate"))
    turn = torch.arange(count, device="cpu")
    for part, numbers in zip(z.split(BATCH), turn.split(BATCH)):
        classes = generator.num_classes
        labels = None if classes is None else numbers % classes
        yield sampling.generate(generator, part, labels=labels).clamp(-1, 1)


def _counted(batches: Iterator[torch.Tensor], bar: Any) -> Iterator[torch.Tensor]:
    for batch in batches:
        yield batch
        bar.update(len(batch))
