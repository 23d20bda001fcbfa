"""``tinygan train``: a GAN of anyone's images, by a named recipe."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinygan import augmentations, data, distributed, hooks, recipes
from tinygan._execution.execution import Execution
from tinygan._run import checkpoint, checks
from tinygan.cli.arguments import SMALL, TUTORIAL
from tinygan.gan_trainer import GANTrainer
from tinygan.hooks.run_folder import prepared


def run(a: argparse.Namespace) -> None:
    """Train, or go on, and say what there is then; a dry run only says what would happen."""
    if a.ngpu > 1 and not a.dry_run and not distributed.is_launched():
        distributed.launch(a.ngpu)
    trainer = None
    try:
        _complete(a)
        _trainer(a, None)  # a bad flag is found now, not after decoding
        images = _images(a)
        given = {"seed": a.seed, "flip": a.flip, "workers": a.workers, "device": a.device}
        loader = data.Loader(images, a.batch_size, **given)
        if a.dry_run:
            return _rehearse(a, loader, images)
        # Some thirty pictures make a good animation; the tutorial's 500 steps suit long runs.
        every = min(500, max(1, a.num_epochs * len(loader) // 30))
        facts = {"classes": images.classes, "trained_on": a.data}
        trainer = _trainer(a, images.num_classes, hooks.usual(a.out, every=every, **facts))
        resumed = trainer.resume(a.resume or a.out, allow=a.allow)
        ranks = "" if trainer.ranks.count == 1 else f"{trainer.ranks.count} ranks on "
        _say(f"{a.num_epochs} epochs of {len(loader)} steps on {ranks}{a.device.type}.")
        if resumed is not None:
            _say(f"Found {resumed}, to go on from; another --out begins anew.")
        trainer.fit(loader, epochs=a.num_epochs)
    except (KeyboardInterrupt, SystemExit) as end:
        saved = "nothing is saved."
        if trainer is not None and trainer.step > 0:
            saved = f"step {trainer.step} is saved in {a.out}; the same command goes on."
        _say(f"\nStopped; {saved}")
        # What a shell expects of Ctrl-C, or of another signal.
        raise SystemExit(130 if isinstance(end, KeyboardInterrupt) else end.code) from None
    except ValueError as error:
        call = r"trainer\.resume\(\.\.\., allow=\[(.*)\]\)"
        words = re.sub(call, lambda at: f"--allow {at[1].replace(', ', ' ')}", str(error))
        raise ValueError(words) from error
    _say(
        f"Done: {trainer.step} steps. Look into {a.out.resolve()}: progress.html plays what was "
        "learned, real_beside_fake.png shows the end.\n"
        f"Next: tinygan sample {a.out}; tinygan explore {a.out}; tinygan info {a.out}"
    )


def _say(words: str) -> None:
    """Print, on one of the ranks."""
    if distributed.join().is_first:
        print(words, flush=True)


def _complete(a: argparse.Namespace) -> None:
    """Choose the device, and what was not given, by the data and the machine; check the rest."""
    a.device = distributed.join().device if a.ngpu > 0 else torch.device("cpu")
    small = a.data == "-" and a.device.type == "cpu"
    for name, value in (SMALL if small else TUTORIAL).items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    for name, least in ("num_epochs", 1), ("batch_size", 1), ("workers", 0), ("ngpu", 0):
        checks.count(f"--{name.replace('_', '-')}", getattr(a, name), at_least=least)
    if a.resume is not None and not a.resume.is_file():
        raise ValueError(f"--resume must be a checkpoint, a .pt file, got {a.resume}.")
    root = Path("faces" if a.data == "-" else a.data).resolve()
    a.out = a.out or Path("runs", root.stem)
    # Folders of one name may lie in several places.
    name = f"{root.stem}-{zlib.crc32(os.fsencode(root)):08x}"
    a.packed = a.out.parent / f"{name}_{a.image_size}x{a.image_size}x{a.nc}.npy"
    if a.dry_run:
        a.workers = 0
    else:
        prepared(a.out)


def _images(a: argparse.Namespace) -> Any:
    """Draw faces, or open the user's images, packed unless that is not wanted."""
    if a.data == "-":
        _say(f"Training on {a.num_faces} built-in drawn faces.")
        return data.CartoonFaces(a.num_faces, a.image_size, a.nc)
    if a.no_pack or a.dry_run:
        return data.image_folder(a.data, a.image_size, a.nc, labels=a.labels)
    if not a.packed.exists():
        _say(f"Decoding the images of {a.data} once, into {a.packed}.")
    return data.pack(a.data, a.packed, a.image_size, a.nc, labels=a.labels, workers=a.workers)


def _trainer(a: argparse.Namespace, classes: int | None, watching: Any = ()) -> GANTrainer:
    """Return the trainer of the recipe, with what the flags change of it."""
    shape = {"width": a.width, "latent_dim": a.nz, "num_classes": classes, "seed": a.seed}
    recipe = recipes.RECIPES[a.recipe](recipes.dcgan_nets(a.image_size, a.nc, **shape))
    adam = dict(recipe.optimizer.keywords)
    if a.lr is not None:
        adam["lr"] = a.lr
    if a.beta1 is not None:
        adam["betas"] = a.beta1, adam["betas"][1]
    recipe = replace(
        recipe,
        optimizer=partial(recipe.optimizer, **adam),
        ema_half_life=recipe.ema_half_life if a.ema is None else a.ema,
        augment=[augmentations.diff_augment()] if a.diff_augment else [],
    )
    execution = Execution(getattr(torch, a.dtype), compile=a.compile, capture=a.capture)
    return recipe.trainer(hooks=watching, seed=a.seed, device=a.device, execution=execution)


def _rehearse(a: argparse.Namespace, loader: data.Loader, images: Any) -> None:
    """Train some steps on one batch in memory, and say what the run would do and need."""
    import resource  # which Windows lacks

    ends: list[float] = []
    clock = hooks.every(1, lambda _, report: ends.append(time.time() * bool(report.floats())))
    trainer = _trainer(a, images.num_classes, [clock])
    # Three to warm up, then as many as lie between two times of the rarest penalty.
    trainer.fit([next(iter(loader))], steps=19)
    steps = a.num_epochs * len(loader)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (sys.platform == "darwin" or 1024)
    if a.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    d, g = (sum(w.numel() for w in player.module.parameters()) for player in trainer.players)
    packed = 0 if a.data == "-" or a.no_pack else len(images) * a.nc * a.image_size**2
    saved = len(checkpoint.to_bytes(trainer.state_dict()))
    print(
        f"Without --dry-run, which writes nothing, this command would train on {a.device.type}:\n"
        f"images   {len(images)} of {a.image_size} pixels\n"
        f"classes  {', '.join(images.classes) if images.num_classes else 'none'}\n"
        f"nets     {g:,} weights of G and {d:,} of D, by the recipe {a.recipe}\n"
        f"steps    {steps:,}: {a.num_epochs} epochs of {len(loader)}, of {a.batch_size} images\n"
        f"files    {a.out}" + f", {a.packed}" * (packed > 0) + "\n"
        f"time     about {(ends[-1] - ends[2]) / 16 * steps / 60:.1f} minutes, by 16 steps\n"
        f"memory   {peak / 1e9:.1f} GB at its peak\n"
        f"disk     {packed / 1e6:.0f} MB of images, two checkpoints of {saved / 1e6:.0f} MB"
    )
