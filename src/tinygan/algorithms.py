"""Training algorithms, to be read beside the papers.

An algorithm is a generator function of the players and a batch. Each ``yield player`` is the border
at which that player's gradients are final and its weights are about to move. Hooks run there, and
only there; so do the averaging of gradients over ranks and the skipping of updates that are not
finite. Between two borders there is only work for the device.

The page "Your own algorithm" of the documentation explains how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch

from tinygan import augmentations, losses, sampling
from tinygan import penalties as penalties_
from tinygan._run import checks
from tinygan.augmentations import Augmentation
from tinygan.batch import Batch
from tinygan.losses import Loss, PairedLoss
from tinygan.penalties import Penalty
from tinygan.player import Player, Players

__all__ = ["Algorithm", "gan"]

Algorithm: TypeAlias = Callable[[Players, Batch], Iterator[Player]]
"""A generator function ``algorithm(players, batch)`` that yields players.

With an attribute ``settings``, a dictionary, a run is resumed only with the same settings. With an
attribute ``turns``, a number, the rest of a batch that is not a multiple of it is left out.
"""


def check_algorithm(algorithm: object) -> None:
    """Raise TypeError for anything that cannot be called with players and a batch."""
    remedy = "write one, or call a function that returns one, such as tinygan.algorithms.gan()."
    checks.takes("algorithm", algorithm, "(players, batch)", remedy, "generator function")


def gan(
    loss: Loss | PairedLoss = losses.non_saturating,
    *,
    penalties: Penalty | Sequence[Penalty] | None = (),
    augment: Augmentation | Sequence[Augmentation] | None = (),
    d_steps: int = 1,
    prior: sampling.Prior = sampling.normal,
) -> Algorithm:
    """Return algorithm 1 of Goodfellow et al. (2014), with the DCGAN tutorial's choices.

    D sees real images and fakes in separate passes, so that batch norm sees each kind alone. G
    learns from the fakes of D's last turn, judged by the D that has just moved.

    Its players are called ``discriminator`` and ``generator``; the latter has a ``latent_dim``. Its
    batches are real examples (N, ...), or these and further inputs of both nets, such as labels
    (N,).

    Args:
        loss: the players' losses, see ``tinygan.losses``.
        penalties: extra terms in D's loss, see ``tinygan.penalties``: one or several.
        augment: random changes to all images before D sees them, see ``tinygan.augmentations``:
            one or several, applied in this order.
        d_steps: updates of D for each update of G, each on its own real images and noise
            (``n_critic`` in algorithm 1 of Gulrajani et al. 2017).
        prior: draws z, see ``tinygan.sampling``.

    Raises:
        TypeError: for anything that is not a loss, a penalty or an augmentation.
        ValueError: for ``d_steps`` under 1.

    Examples:
        >>> import tinygan
        >>> wgan_gp = gan(losses.wasserstein, penalties=tinygan.penalties.wgan_gp(), d_steps=5)
    """
    cost = losses.checked(loss)
    terms = penalties_.listed(penalties)
    changes = augmentations.listed(augment)
    d_steps = checks.count("d_steps", d_steps)
    seen = partial(augmentations.applied, changes)  # what D sees of images

    def algorithm(players: Players, batch: Batch) -> Iterator[Player]:
        D, G = players.discriminator, players.generator
        for turn in batch.split(d_steps):
            x, *labels = turn
            z = turn.draw("noise", sampling.of_prior(prior, G.latent_dim))

            real = seen(x, turn, "real")
            real_logits = D(real, *labels)
            if not cost.paired:  # backward at once: only one graph of D is in memory at a time
                D.pay(cost.real(real_logits))
            fakes = G(z, *labels)
            fake = seen(fakes.detach(), turn, "fake")
            fake_logits = D(fake, *labels)
            if cost.paired:
                D.pay(cost.discriminator(real_logits, fake_logits))
            else:
                D.pay(cost.fake(fake_logits))
            for number, penalty in enumerate(terms):
                if turn.every(penalty.every):
                    term = penalty.term(D.twice_differentiable(*labels), real, fake, turn, number)
                    D.pay(term, penalty.name, weight=penalty.every)
            D.log(d_real=real_logits.sigmoid(), d_fake=fake_logits.sigmoid())
            yield D

        logits = D(seen(fakes, turn, "generator"), *labels)
        if cost.paired:
            with torch.no_grad():
                real_logits = D(real, *labels)
            G.pay(cost.generator(real_logits, logits))
        else:
            G.pay(cost.generator(logits))
        G.log(d_fake_after=logits.sigmoid())
        yield G

    algorithm.settings = {  # type: ignore[attr-defined]
        "loss": loss, "penalties": terms, "augment": changes, "d_steps": d_steps, "prior": prior
    }  # fmt: skip
    algorithm.turns = d_steps  # type: ignore[attr-defined]
    return algorithm
