"""What one step measures, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

COUNTERS = ("step", "epoch", "images")
"""What logs count by; no statistic may be called so."""


class Report(Mapping[str, torch.Tensor]):
    """A step's statistics: a mapping of names to scalar tensors, still on the device.

    For ``algorithms.gan`` these are each penalty, by its name, and:

    - ``loss_discriminator``: D's loss on real plus fake images (the tutorial's Loss_D);
    - ``loss_generator``: G's loss (Loss_G);
    - ``d_real``: the mean of D(x), D's probability of "real" for the real images;
    - ``d_fake``: the mean of D(G(z)) before D's update;
    - ``d_fake_after``: the mean of D(G(z)) after it.

    It is made of names and as many values, (n,).

    Examples:
        >>> report = Report(["loss_critic"], torch.tensor([0.5]))
        >>> report["loss_critic"], report.floats()
        (tensor(0.5000), {'loss_critic': 0.5})
    """

    def __init__(self, names: Sequence[str], values: torch.Tensor) -> None:
        self.names = tuple(names)
        self._values = values

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self._values[self.names.index(name)]
        except ValueError:
            raise KeyError(f"{name}; this step's statistics are {', '.join(self.names)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def stacked(self) -> torch.Tensor:
        """Return the values as one tensor (n,), in the order of the names, without waiting."""
        return self._values

    def floats(self) -> dict[str, float]:
        """Return the values by name. Waits for the device, once for all of them."""
        return dict(zip(self.names, self._values.tolist()))


class Ledger:
    """What a player has paid and logged since its last update.

    Attributes:
        share: the weight of the mean over a part of a batch in the mean over all of it.
        loss_scale: the factor of float16's losses, a scalar on the device; None for other types.
        paid: whether the player has paid since its last update.
    """

    def __init__(
        self, player: str, share: float = 1.0, loss_scale: torch.Tensor | None = None
    ) -> None:
        self.share, self.loss_scale, self.paid = share, loss_scale, False
        self._player = player
        self._noted: dict[str, torch.Tensor] = {}

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return this part's share of the mean over the batch, in memory of its own."""
        # A copy, because ranks average in place what is logged.
        mean = values.clone() if values.dim() == 0 else values.mean()
        return mean if self.share == 1 else mean * self.share

    def add(self, name: str | None, cost: torch.Tensor) -> None:
        """Note a cost; without a name of its own it is added to the player's loss."""
        own = f"loss_{self._player}"
        if name is None and own in self._noted:
            self._noted[own] = self._noted[own] + cost
        else:
            self.note(name or own, cost)

    def note(self, name: str, value: torch.Tensor) -> None:
        """Note a statistic."""
        if name in COUNTERS:
            raise ValueError(
                f"a statistic must not be called {', '.join(COUNTERS)}, which logs count by, got "
                f"{name}; choose another name."
            )
        if name in self._noted:
            raise ValueError(
                f"a statistic's name must be used once, got {name} twice from the {self._player}; "
                "give each cost and each value its own name."
            )
        self._noted[name] = value

    def take(self) -> dict[str, torch.Tensor]:
        """Return what was noted since the last call, by name."""
        noted, self._noted = self._noted, {}
        return noted
