"""``tinygan interpolate``: a film of a walk from seed to seed."""

from __future__ import annotations

import argparse
import importlib.util

from torch.nn.functional import one_hot

from tinygan import latents, pictures
from tinygan._run import checks, notebook
from tinygan.cli.loaded import chosen, folder_of, generator_of, labels_of

FORMATS = (".mp4", ".gif", ".html")


def run(a: argparse.Namespace) -> None:
    """Write the film, and say where."""
    suffix = ".mp4" if importlib.util.find_spec("av") else ".gif"
    out = a.out or folder_of(a.run) / f"walk{suffix}"
    if out.suffix not in FORMATS:
        raise ValueError(f"out must end in .mp4, .gif or .html, got {out}; choose one.")
    # A GIF's clock counts hundredths of a second, and browsers slow down those of less than 2.
    fps = min(checks.count("fps", a.fps), 20 if out.suffix == ".gif" else 240)
    count = max(1, round(fps * checks.number("seconds", a.seconds, "(0, 3600]")))
    generator = generator_of(a)
    seeds, z, labels = chosen(a, generator)
    checks.count("the number of seeds", len(seeds), at_least=2)
    if labels is not None:
        if a.labels:
            labels = labels_of(a, generator, len(seeds))
        shares = one_hot(labels, len(latents.class_names(generator))).float()
        labels = latents.fade(shares, z, count)
    images = latents.images(generator, latents.walk(z, count), labels)
    grids = (pictures.grid(image[None], padding=0) for image in images)
    frames = notebook.bar(iterable=grids, total=count, delay=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".mp4":
        pictures.save_mp4(frames, out, fps=fps)
    elif out.suffix == ".gif":
        pictures.save_gif(frames, out, seconds_per_frame=1 / fps, rest=0)
    else:
        times, title = (f"{step / fps:.1f} s" for step in range(count)), "A walk through the noise"
        pictures.save_html(
            frames, out, captions=times, seconds_per_frame=1 / fps, rest=0, title=title
        )
    print(f"{count} frames: {out}")
