"""``tinygan interpolate``: a film of a walk from seed to seed."""

from __future__ import annotations

import argparse

import torch

from tinygan import latents, pictures
from tinygan._run import checks, notebook
from tinygan.cli.loaded import chosen


def run(a: argparse.Namespace) -> None:
    """Write the film, and say where."""
    if a.out.suffix not in (".mp4", ".gif", ".html"):
        raise ValueError(f"out must end in .mp4, .gif or .html, got {a.out}; choose one.")
    generator, seeds, z, labels = chosen(a)
    checks.count("the number of seeds", len(seeds), at_least=2)
    if a.labels and "," in a.labels:  # one for each seed, in their order
        labels = [torch.tensor(latents.classes(generator, a.labels))]
        if len(labels[0]) != len(seeds):
            raise ValueError(f"labels must be one, or one for each seed, got {a.labels!r}.")
    # A GIF's clock counts hundredths of a second, and browsers slow down those of less than 2.
    fps = min(checks.count("fps", a.fps), 20 if a.out.suffix == ".gif" else 240)
    count = max(1, round(fps * checks.number("seconds", a.seconds, "(0, 3600]")))
    every = torch.eye(len(latents.classes(generator, None)))
    shares = (latents.fade(every[label], z, count) for label in labels)
    images = latents.images(generator, latents.walk(z, count), *shares)
    grids = (pictures.grid(image[None], padding=0) for image in images)
    frames = notebook.bar(iterable=grids, total=count)
    if a.out.suffix == ".mp4":
        pictures.save_mp4(frames, a.out, fps=fps)
    elif a.out.suffix == ".gif":
        pictures.save_gif(frames, a.out, seconds_per_frame=1 / fps, rest=0)
    else:
        times, title = (f"{step / fps:.1f} s" for step in range(count)), "A walk through the noise"
        pictures.save_html(
            frames, a.out, captions=times, seconds_per_frame=1 / fps, rest=0, title=title
        )
    print(f"{count} frames: {a.out}")
