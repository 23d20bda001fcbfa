"""How good a generator is: modes and attributes covered, FID, KID, precision and recall."""

from tinygan.metrics.faces import AttributeReader, attribute_coverage
from tinygan.metrics.fidelity import (
    features,
    fid,
    inception,
    kid,
    precision_recall,
    quality,
    with_errors,
)
from tinygan.metrics.lite import lite
from tinygan.metrics.modes import ModeCoverage, mode_coverage, nearest_mode
from tinygan.metrics.random_net import random_net

__all__ = [
    "AttributeReader",
    "ModeCoverage",
    "attribute_coverage",
    "features",
    "fid",
    "inception",
    "kid",
    "lite",
    "mode_coverage",
    "nearest_mode",
    "precision_recall",
    "quality",
    "random_net",
    "with_errors",
]
