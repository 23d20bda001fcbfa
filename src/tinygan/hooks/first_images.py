"""The first real images that a run sees."""

from __future__ import annotations

from typing import Any

import torch

COUNT = 64


class FirstImages:
    """Collects up to 64 images from a run's first batches, and remembers them across a resume.

    Examples:
        >>> first = FirstImages()
        >>> [first.add(torch.zeros(48, 3, 8, 8)) for _ in range(3)], len(first.images)
        ([True, True, False], 64)
    """

    def __init__(self) -> None:
        self.images = torch.empty(0)

    def add(self, real: torch.Tensor) -> bool:
        """Take what is missing from a batch (N, C, H, W); return whether any was."""
        if real.dim() != 4:
            raise ValueError(
                f"pictures need images (N, C, H, W), got {tuple(real.shape)}; leave out hooks that "
                "show images."
            )
        missing = COUNT - len(self.images)
        if missing == 0:
            return False
        taken = real[:missing].cpu().clone()
        self.images = torch.cat([self.images, taken]) if len(self.images) else taken
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the images."""
        return {"images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the images."""
        self.images = state["images"]
