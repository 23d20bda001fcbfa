"""``tinygan train``: a GAN of anyone's images, by a named recipe."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
import traceback
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinygan import augmentations, data, distributed, hooks, recipes
from tinygan._execution.execution import Execution
from tinygan._run import checkpoint, checks
from tinygan.cli.arguments import DRAWN, LARGE, QUICK_BATCH, SMALL
from tinygan.gan_trainer import GANTrainer
from tinygan.hooks.run_folder import prepared


def run(a: argparse.Namespace) -> None:
    """Train, or go on, and say what there is then; a dry run only says what would happen."""
    try:
        _complete(a)
        _trainer(a, 1, None)  # a bad flag is found now, not after decoding, and by one process
        if a.ngpu > 1 and not a.dry_run and not distributed.is_launched():
            distributed.launch(a.ngpu)
        given = {"seed": a.seed, "flip": a.flip, "workers": a.workers, "device": a.device}
        loader = data.Loader(_images(a), a.batch_size, **given)
        images: Any = loader.dataset
        if images.num_classes == 1:
            (name,) = images.classes
            raise ValueError(f"--labels must find two classes or more, got {name}; leave it out.")
        a.num_epochs = a.num_epochs or max(1, round(a.images / len(images)))
        (_rehearse if a.dry_run else _train)(a, loader, images)
    except ValueError as error:
        call = r"trainer\.resume\(\.\.\., allow=\[(.*)\]\)"
        words = re.sub(call, lambda at: f"--allow {at[1].replace(', ', ' ')}", str(error))
        raise ValueError(words) from error
    finally:
        with suppress(OSError):  # only an empty folder can be removed
            a.out.rmdir()


def _train(a: argparse.Namespace, loader: data.Loader, images: Any) -> None:
    # Some thirty pictures make a good animation; the tutorial's 500 steps suit long runs.
    every = min(500, max(1, a.num_epochs * len(loader) // 30))
    name = "drawn faces" if a.data == "-" else Path(a.data).name
    facts = {"classes": getattr(images, "classes", None), "trained_on": name}
    watching = hooks.usual(a.out, every=every, **facts)
    trainer = _trainer(a, len(images), images.num_classes, watching)
    resumed = trainer.resume(a.resume or a.out, allow=a.allow)
    if trainer.ranks.is_first:
        where = a.device.type + (f", {n} ranks" if (n := trainer.ranks.count) > 1 else "")
        print(f"{len(images)} images, {_epochs(a)} of {len(loader)} steps on {where}.")
        print(f"Recipe {a.recipe}: batches of {a.batch_size}, nets of width {a.width}.")
        if resumed is not None:
            print(f"Resuming from {resumed}; use another --out to start afresh.")
    start = trainer.step
    try:
        trainer.fit(loader, epochs=a.num_epochs)
    except distributed.RankError as error:  # each rank has one; they say whose fault it was
        print(f"tinygan train, rank {trainer.ranks.rank}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (ValueError, ImportError, OSError):
        if trainer.step == start:  # a bad input
            raise
        traceback.print_exc()  # after hours one wants to know where
        raise SystemExit(1) from None
    if trainer.ranks.is_first:
        print(f"Done: {trainer.step} steps. Look into {a.out.resolve()}: progress.html plays")
        print("what was learned, and real_beside_fake.png shows the end. Now try:")
        print(f"  tinygan sample {a.out}\n  tinygan explore {a.out}\n  tinygan info {a.out}")


def _complete(a: argparse.Namespace) -> None:
    """Choose the device, and what was not given, by the data and the machine; check the rest."""
    root = Path("faces" if a.data == "-" else a.data).resolve()
    a.out = a.out or Path("runs", root.stem)
    ranks, given = distributed.join(), a.batch_size
    a.device = checks.device(a.device or (ranks.device if a.ngpu > 0 else "cpu"))
    on_cpu = a.device.type == "cpu"
    a.recipe = a.recipe or ("quick" if on_cpu else "relativistic")
    for name, value in ((DRAWN if a.data == "-" else SMALL) if on_cpu else LARGE).items():
        if getattr(a, name, None) is None:
            setattr(a, name, value)
    if a.recipe == "quick" and given is None:
        a.batch_size = QUICK_BATCH
    if a.recipe == "wgan-gp" and given is None:  # it splits a rank's batch among D's five turns
        a.batch_size -= a.batch_size % (5 * max(a.ngpu, ranks.count))
    for name, least in ("num_epochs", 1), ("batch_size", 1), ("workers", 0), ("ngpu", 0):
        if (value := getattr(a, name)) is not None:
            checks.count(f"--{name.replace('_', '-')}", value, at_least=least)
    if a.data == "-" and a.labels is not None:
        raise ValueError(f"--labels must be left out for drawn faces, got {a.labels}; give images.")
    if a.resume is not None and not a.resume.is_file():
        raise ValueError(f"--resume must be a checkpoint, a .pt file, got {a.resume}.")
    # Folders of one name may lie in several places.
    name = f"{root.stem}-{zlib.crc32(bytes(root)):08x}"
    height, width = checks.size("--image-size", a.image_size, at_least=8)
    a.packed = a.out.parent / f"{name}_{height}x{width}x{a.nc}.npy"
    if not a.dry_run:
        prepared(a.out)


def _images(a: argparse.Namespace) -> Any:
    """Draw faces, or open the user's images, packed unless that is not wanted."""
    if a.data == "-":
        return data.CartoonFaces(a.num_faces, a.image_size, a.nc)
    if not Path(a.data).exists():
        raise ValueError(f"{a.data} does not exist; give a folder, zip or tar of images, or -.")
    if a.no_pack or a.dry_run:
        return data.image_folder(a.data, a.image_size, a.nc, labels=a.labels)
    return data.pack(a.data, a.packed, a.image_size, a.nc, labels=a.labels, workers=a.workers)


def _trainer(
    a: argparse.Namespace, images: int, classes: int | None, watching: Any = ()
) -> GANTrainer:
    """Return the trainer of the recipe, with what the flags change of it."""
    shape = {"width": a.width, "num_classes": classes, "seed": a.seed}
    shape |= {} if a.nz is None else {"latent_dim": a.nz}
    make = recipes.r3gan_nets if a.recipe == "r3gan" else recipes.dcgan_nets
    rate = {} if a.lr is None else {"lr": a.lr}
    own = {"r3gan": {"burn_in": (a.num_epochs or 1) * images, **rate}, "quick": rate}
    nets = make(a.image_size, a.nc, **shape)
    recipe = recipes.RECIPES[a.recipe](nets, **own.get(a.recipe, {}))
    if a.recipe == "r3gan" and a.beta1 is not None:
        raise ValueError(
            "--beta1 must be left out with --recipe r3gan, which sets Adam's betas by a schedule, "
            f"got {a.beta1}; use another recipe, or write a program."
        )
    adam = recipe.optimizer.keywords | rate
    adam |= {} if a.beta1 is None else {"betas": (a.beta1, adam["betas"][1])}
    recipe = replace(
        recipe, optimizer=partial(recipe.optimizer, **adam),
        ema_half_life=recipe.ema_half_life if a.ema is None else a.ema,
        augment=recipe.augment or [augmentations.diff_augment()] * a.diff_augment,
    )  # fmt: skip
    how = {name: getattr(a, name) for name in ("compile", "capture", "cudnn_benchmark")}
    execution = Execution(getattr(torch, a.dtype), **how)
    return recipe.trainer(hooks=watching, seed=a.seed, device=a.device, execution=execution)


def _rehearse(a: argparse.Namespace, loader: data.Loader, images: Any) -> None:
    """Train some steps on one batch in memory, and say what the run would do and need."""
    trainer, done = _trainer(a, len(images), images.num_classes), 0
    if a.resume or checkpoint.files(a.out / "checkpoints"):
        begun = _trainer(a, len(images), images.num_classes)  # also: does the command fit it?
        begun.resume(a.resume or a.out, allow=["hooks", *a.allow])
        done = begun.step
    batch, steps = [next(iter(loader))], a.num_epochs * len(loader)
    d, g = (sum(w.numel() for w in player.module.parameters()) for player in trainer.players)
    print("Without --dry-run, which writes nothing, this command would train")
    classes = getattr(images, "classes", None) or ["none"]
    print(f"images   {len(images)}; classes: {', '.join(classes)}")
    print(f"nets     {g:,} weights of G and {d:,} of D, by the recipe {a.recipe}")
    of_which = f", of which {done} are done" if done else ""
    print(f"steps    {steps}: {_epochs(a)} of {len(loader)}, of {a.batch_size} images{of_which}")
    sys.stdout.flush()
    count, begin = 2, time.perf_counter()
    trainer.fit(batch, steps=1)  # the first has all lazy penalties, and compiles
    middle = time.perf_counter()
    trainer.fit(batch, steps=2)
    if time.perf_counter() - middle < 2:  # seconds; of large nets on a CPU two steps must do
        trainer.fit(batch, steps=4)
        count, begin = 16, time.perf_counter()
        trainer.fit(batch, steps=20)  # 16, among which is each lazy penalty
    seconds = (time.perf_counter() - begin) / count * max(0, steps - done)
    time_ = f"{seconds / 60:.1f} minutes" if seconds > 60 else f"{seconds:.1f} seconds"
    print(f"time     about {time_} on {a.device.type}, estimated by {count} steps")
    print(f"memory   {_peak(a.device) / 1e9:.1f} GB at its peak")
    saved = len(checkpoint.to_bytes(trainer.state_dict())) / 1e6
    print(f"files    {a.out}, two checkpoints of {saved:.1f} MB")
    if a.data != "-" and not a.no_pack:
        size = len(images) * a.nc * math.prod(checks.size("--image-size", a.image_size))
        print(f"         {a.packed}, {size / 1e6:.1f} MB of images")


def _epochs(a: argparse.Namespace) -> str:
    return f"{a.num_epochs} epoch{'s' * (a.num_epochs > 1)}"


def _peak(device: torch.device) -> float:
    """Return the most memory that was in use at once, in bytes, of a GPU or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return math.nan
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
