"""Drawn faces with known attributes: a data set that needs no download."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinygan import seeds
from tinygan._run import checks
from tinygan.data.decoding import scale

SKIN = (
    (255, 224, 196), (241, 194, 150), (224, 172, 118), (186, 128, 82), (134, 85, 54), (86, 53, 36),
)  # fmt: skip
HAIR = ((38, 30, 30), (98, 58, 32), (222, 180, 92), (178, 72, 34), (168, 168, 172), (74, 92, 178))
EYES = ((86, 54, 30), (58, 120, 190), (62, 138, 78), (112, 116, 122))
HAIR_STYLES = ("bald", "short", "long", "curly")
MOUTHS = ("smile", "straight", "open")
GLASSES = ("none", "round", "square")

# Continuous variation, uniform in [-1, 1], so that no two faces are alike.
_VARIATION = (
    "x", "y", "scale", "tilt", "head_width", "eye_distance", "eye_height", "mouth_width",
    "brow", "background_hue", "clothes_hue",
)  # fmt: skip

Place = Tensor | float

# Whatever PyTorch's defaults are.
_numbers = partial(torch.as_tensor, dtype=torch.float32, device="cpu")


class CartoonFaces(Dataset[tuple[Tensor, Tensor]]):
    """Faces drawn from a finite grid of attributes, each with its own small variations.

    Face ``i`` is a pure function of (seed, i), on every machine of the same PyTorch build. All are
    drawn when the set is made, some thousands a second at 32 or 64 pixels: ``pixels``,
    (length, C, H, W) of uint8, and ``attributes``, (length, 6) of int64.

    Args:
        length: how many faces.
        image_size: height and width in pixels, at least 8; the face fits the smaller side.
        channels: 3 for colour or 1 for grey.
        seed: another seed, other faces.
        label: the attribute that is a face's class, for nets with ``num_classes``; None for all
            of them as its label.

    Raises:
        ValueError: for an argument out of range.

    Examples:
        >>> CartoonFaces(10, image_size=32)[3][0].shape
        torch.Size([3, 32, 32])
        >>> CartoonFaces.ATTRIBUTES
        {'skin': 6, 'hair': 6, 'hair_style': 4, 'eyes': 4, 'mouth': 3, 'glasses': 3}
    """

    ATTRIBUTES = {  # noqa: RUF012 - a constant, never written
        "skin": len(SKIN), "hair": len(HAIR), "hair_style": len(HAIR_STYLES), "eyes": len(EYES),
        "mouth": len(MOUTHS), "glasses": len(GLASSES),
    }  # fmt: skip
    """How many values each attribute takes; the columns of ``attributes``, in order."""

    def __init__(
        self,
        length: int = 10_000,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        *,
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        checks.count("length", length)
        self.image_size = checks.size("image_size", image_size, at_least=8)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}; use 3 for colour.")
        self.channels = channels
        names, counts = list(self.ATTRIBUTES), _numbers(list(self.ATTRIBUTES.values()))
        draws = [len(counts), len(_VARIATION)]
        uniform = torch.stack(
            [
                seeds.drawn(torch.rand, (sum(draws),), seeds.generator(seed, "face", i))
                for i in range(length)
            ]
        )
        grid, variation = uniform.split(draws, dim=1)
        self.attributes = self.labels = (grid * counts).long()
        self.num_classes: int | None = None
        self.configuration: dict[str, str | int] = {
            "images": length,
            "image_size": str(self.image_size),
            "channels": channels,
            "seed": int(seed),
        }
        if label is not None:
            if label not in names:
                raise ValueError(f"label must be one of {', '.join(names)}, got {label!r}.")
            self.labels = self.attributes[:, names.index(label)]
            self.num_classes = self.ATTRIBUTES[label]
            self.configuration["label"] = label
        # Drawn in chunks of a size at which a shape's temporaries stay in cache.
        chunk = max(1, 2**18 // math.prod(self.image_size))
        self.pixels = torch.cat(
            [
                _in_bytes(_draw(*faces, self.image_size), channels)
                for faces in zip(self.attributes.split(chunk), (variation * 2 - 1).split(chunk))
            ]
        )

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return face ``index``, (C, H, W) in [-1, 1], and its label, () or (6,) of int64."""
        return scale(self.pixels[index]), self.labels[index]


class _Canvas:
    """Images on which shapes are painted, one shape for all images at a time.

    A shape is its signed distance (N, H, W) to the edge, negative inside, in units of half the
    smaller side; painting blends over one pixel at the edge, so that nothing is jagged.
    """

    def __init__(self, image_size: tuple[int, int], vary: dict[str, Tensor]) -> None:
        height, width = image_size
        self.pixel = 2 / min(image_size)
        y = (_numbers(range(height)) - (height - 1) / 2) * self.pixel
        x = (_numbers(range(width)) - (width - 1) / 2) * self.pixel
        self.frame_y = y.view(1, -1, 1)
        tilt, scale = vary["tilt"] * 0.14, 1.14 + vary["scale"] * 0.08
        x, y = x.view(1, 1, -1) - vary["x"] * 0.08, y.view(1, -1, 1) - vary["y"] * 0.06
        self.x = (torch.cos(tilt) * x + torch.sin(tilt) * y) / scale
        self.y = (torch.cos(tilt) * y - torch.sin(tilt) * x) / scale
        self.image = tilt.new_empty(len(tilt), 3, height, width)

    def paint(self, shape: Tensor, colour: Tensor, where: Tensor | None = None) -> None:
        """Paint ``shape`` in ``colour`` (N, 3) on the images where ``where`` (N,) is true."""
        alpha = (0.5 - shape / self.pixel).clamp(0, 1)
        if where is not None:
            alpha = alpha * where.view(-1, 1, 1)
        self.image.lerp_(colour[:, :, None, None].expand_as(self.image), alpha[:, None])

    def ellipse(self, cx: Place, cy: Place, rx: Place, ry: Place) -> Tensor:
        radius = torch.minimum(_numbers(rx), _numbers(ry))
        return (torch.hypot((self.x - cx) / rx, (self.y - cy) / ry) - 1) * radius

    def box(self, cx: Place, cy: Place, hx: float, hy: float, corner: float) -> Tensor:
        dx = (self.x - cx).abs() - (hx - corner)
        dy = (self.y - cy).abs() - (hy - corner)
        outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
        return outside + torch.maximum(dx, dy).clamp(max=0) - corner

    def line(self, ax: Place, ay: Place, bx: Place, by: Place, width: float) -> Tensor:
        dx, dy = _numbers(bx - ax), _numbers(by - ay)
        along = (((self.x - ax) * dx + (self.y - ay) * dy) / (dx**2 + dy**2)).clamp(0, 1)
        return torch.hypot(self.x - ax - along * dx, self.y - ay - along * dy) - width / 2

    def outline(self, shape: Tensor, width: float) -> Tensor:
        """Return the shape's edge as a stroke, at least a pixel wide so that it stays visible."""
        return shape.abs() - max(width, self.pixel) / 2


def _pastel(hue: Tensor, value: float, saturation: float) -> Tensor:
    """Return colours (N, 3) in [0, 1] for hues (N, 1, 1) in [-1, 1], once round the wheel."""
    thirds = _numbers([0, 2 * math.pi / 3, 4 * math.pi / 3])
    wheel = torch.cos(hue[:, 0] * math.pi - thirds)
    return value * (1 - saturation / 2 + saturation / 2 * wheel)


def _draw(attributes: Tensor, variation: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw faces from the back to the front: (N, 3, H, W), nearly in [0, 1]."""
    vary = dict(zip(_VARIATION, variation.T[:, :, None, None]))
    canvas = _Canvas(size, vary)
    paint, ellipse = canvas.paint, canvas.ellipse
    skin_index, hair_index, style, eye_index, mouth, glasses = attributes.T
    skin = _numbers(SKIN)[skin_index] / 255
    hair = _numbers(HAIR)[hair_index] / 255
    iris = _numbers(EYES)[eye_index] / 255
    white, dark = torch.full_like(skin, 0.97), torch.full_like(skin, 0.08)
    cheeks = 0.82 * skin + _numbers([0.15, 0.03, 0.04])
    lips = 0.55 * skin + _numbers([0.33, 0.04, 0.06])

    background = _pastel(vary["background_hue"], 0.95, 0.45)
    light = 1.0 - 0.12 * canvas.frame_y[:, None]
    canvas.image[:] = (background[:, :, None, None] * light).clamp(0, 1)

    width = 0.5 + 0.05 * vary["head_width"]
    long, curly, short = (style == HAIR_STYLES.index(s) for s in ("long", "curly", "short"))
    paint(torch.maximum(ellipse(0, 0.1, width + 0.2, 0.85), canvas.y - 0.8), hair * 0.85, long)
    paint(ellipse(0, 1.15, 0.85, 0.45), _pastel(vary["clothes_hue"], 0.8, 0.75))
    paint(canvas.box(0, 0.68, 0.19, 0.3, 0.1), skin * 0.86)
    curls = [
        ellipse(1.1 * width * math.sin(a), 0.02 - 0.62 * math.cos(a), 0.25, 0.25)
        for a in torch.linspace(-1.75, 1.75, 9, dtype=torch.float32, device="cpu").tolist()
    ]
    paint(torch.stack(curls).amin(0), hair, curly)
    for side in (-1, 1):
        paint(ellipse(side * width, 0.08, 0.09, 0.14), skin * 0.92)
    paint(ellipse(0, 0.05, width, 0.66), skin)

    # The hair in front is the scalp above a parting line that bends down at the sides.
    scalp = ellipse(0, 0.03, width + 0.06, 0.72)
    fringe = canvas.y + 0.32 - 0.5 * canvas.x**2 - 0.1 * canvas.x
    paint(torch.maximum(scalp, fringe), hair, short | long | curly)

    eye_x, eye_y = 0.21 + 0.025 * vary["eye_distance"], 0.02
    for side in (-1, 1):
        x = side * eye_x
        paint(ellipse(x, eye_y, 0.115, 0.085 + 0.015 * vary["eye_height"]), white)
        paint(ellipse(x, eye_y, 0.068, 0.068), iris)
        paint(ellipse(x, eye_y, 0.032, 0.032), dark)
        brow = 0.05 * vary["brow"]
        inner, outer = x - side * 0.11, x + side * 0.11
        paint(canvas.line(inner, -0.16 + brow, outer, -0.16 - brow, 0.05), hair * 0.6)
        paint(ellipse(x * 1.35, 0.26, 0.1, 0.07) + 0.02, cheeks)
    paint(canvas.line(0.02, 0.08, 0.045, 0.22, 0.05), skin * 0.82)
    paint(ellipse(0, 0.23, 0.075, 0.04), skin * 0.8)

    mouth_x = 0.19 + 0.03 * vary["mouth_width"]
    smile = torch.maximum(ellipse(0, 0.36, mouth_x, 0.15), 0.38 - canvas.y)
    paint(smile, lips * 0.9, mouth == MOUTHS.index("smile"))
    teeth = torch.maximum(ellipse(0, 0.36, mouth_x * 0.82, 0.1), 0.39 - canvas.y)
    paint(teeth, white, mouth == MOUTHS.index("smile"))
    straight = canvas.line(-mouth_x, 0.43, mouth_x, 0.43, 0.07)
    paint(straight, lips * 0.8, mouth == MOUTHS.index("straight"))
    paint(ellipse(0, 0.45, mouth_x * 0.62, 0.12), lips, mouth == MOUTHS.index("open"))
    paint(ellipse(0, 0.46, mouth_x * 0.42, 0.08), dark, mouth == MOUTHS.index("open"))

    for kind in ("round", "square"):
        worn = glasses == GLASSES.index(kind)
        for side in (-1, 1):
            x = side * eye_x
            lens = canvas.box(x, eye_y + 0.01, 0.18, 0.13, 0.04)
            if kind == "round":
                lens = ellipse(x, eye_y + 0.01, 0.17, 0.17)
            paint(canvas.outline(lens, 0.045), dark, worn)
        bridge = canvas.line(0.05 - eye_x + 0.12, eye_y, eye_x - 0.17, eye_y, 0.045)
        paint(bridge, dark, worn)

    return canvas.image


def _in_bytes(image: Tensor, channels: int) -> Tensor:
    if channels == 1:
        # ITU-R BT.601 luma, as Pillow's "L" mode weighs colours.
        image = (image * _numbers([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
