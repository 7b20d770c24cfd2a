# SPDX-License-Identifier: Apache-2.0
"""What a user may tune of the pipeline. Imports nothing, so that whoever offers it can."""

from __future__ import annotations

from dataclasses import dataclass

CHOICES = {
    "init": ("auto", "features", "views"),
    "search": ("auto", "always", "never"),
    "refinement": ("solver", "gradient_pose", "gradient_encoder", "none"),
    "photometric": ("auto", "never"),
    "depth": ("auto", "never"),
    "sampling": ("random", "interest_point", "interest_region"),
}


@dataclass(frozen=True)
class Settings:
    """What a user may tune.

    hypotheses: views of the codebook that are refined for an object without a usable start pose;
    keep: of those, how many different ones are followed to the end; init: where objects without a
    start begin that have a radiance field and come with a photo: features (what the photo shows is
    found again in the field, see `FieldFeatures`), views of the codebook, or auto: features, and
    views where they lead nowhere; a scene has features alone. search: auto (where the
    given poses are missing or fit badly), always or never; accept_iou: overlap from which the
    result of a given pose is taken without a search; confirm_iou: the same for one that hardly
    moved; batch: most poses refined at once. refinement: solver (the package's own), or the
    procedures of Palazzi et al. for comparison: gradient_pose, gradient_encoder (seconds an
    object), or none: the likeliest pose stays as it is guessed. photometric: auto (objects that
    have a radiance field are refined by the photo as well, with the solver, where one comes) or
    never; depth: auto (what was measured is compared as well, with the solver, where it comes) or
    never; photo_rays, sampling: which rays of a photo are compared; exposure: solve for brightness
    and white balance of a photo too. What stands for a category is not
    searched for by views, whatever `search` says: the encoder knows more.
    """

    hypotheses: int = 16
    keep: int = 4
    init: str = "auto"
    search: str = "auto"
    accept_iou: float = 0.97
    confirm_iou: float = 0.8
    batch: int = 64
    refinement: str = "solver"
    photometric: str = "auto"
    depth: str = "auto"
    photo_rays: int = 1024
    sampling: str = "interest_region"
    exposure: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {known}")
        for name in ("hypotheses", "keep", "batch", "photo_rays"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
