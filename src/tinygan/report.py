"""What one step measured, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from typing_extensions import override


class Report(Mapping[str, torch.Tensor]):
    """A step's statistics: a mapping of names to scalar tensors, still on the device.

    For ``algorithms.gan`` these are each penalty, by its name, and:

    - ``loss_discriminator``: D's loss on real plus fake images (the tutorial's Loss_D);
    - ``loss_generator``: G's loss (Loss_G);
    - ``d_real``: the mean of D(x), D's probability of "real" for the real images;
    - ``d_fake``: the mean of D(G(z)) before D's update;
    - ``d_fake_after``: the mean of D(G(z)) after it.

    Args:
        names: of the statistics.
        values: one for each, (n,).

    Examples:
        >>> report = Report(["loss_critic"], torch.tensor([0.5]))
        >>> report["loss_critic"], report.floats()
        (tensor(0.5000), {'loss_critic': 0.5})
    """

    def __init__(self, names: Sequence[str], values: torch.Tensor) -> None:
        self.names = tuple(names)
        self._values = values

    @override
    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self._values[self.names.index(name)]
        except ValueError:
            raise KeyError(f"{name}; this step's statistics are {', '.join(self.names)}") from None

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @override
    def __len__(self) -> int:
        return len(self.names)

    def stacked(self) -> torch.Tensor:
        """Return the values as one tensor (n,), in the order of the names, without waiting."""
        return self._values

    def floats(self) -> dict[str, float]:
        """Return the values by name. Waits for the device, once for all of them."""
        return dict(zip(self.names, self._values.tolist()))
