"""Generators on the Hugging Face Hub, by its own library: ``pip install "tinygan[hub]"``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from tinygan.nets import dcgan
from tinygan.nets.saved import facts_in, layer_of


class DCGANGenerator(
    dcgan.DCGANGenerator,
    PyTorchModelHubMixin,
    library_name="tinygan",
    pipeline_tag="unconditional-image-generation",
    tags=["gan", "dcgan"],
):
    """A ``tinygan.DCGANGenerator`` that goes to the Hub and comes back.

    ``from_pretrained`` reads a folder by ``tinygan.save_generator``, such as that of a run;
    ``save_pretrained`` and ``push_to_hub`` write one, with a model card.

    Examples:
        >>> dcgan.DCGANGenerator(16).save("runs/faces/generator")
        >>> generator = DCGANGenerator.from_pretrained("runs/faces/generator")
        Loading weights from local directory

        Then ``generator.push_to_hub("your-name/faces")``.
    """

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, config: Mapping[str, Any], **how: Any
    ) -> DCGANGenerator:
        layers = {k: layer_of(v) for k, v in how.items() if isinstance(v, dict) and "layer" in v}
        net: DCGANGenerator = super()._from_pretrained(**how | layers)
        net.facts = facts_in(config, net)
        return net

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)
