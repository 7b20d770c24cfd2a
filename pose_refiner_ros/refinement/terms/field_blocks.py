# SPDX-License-Identifier: Apache-2.0
"""Which poses of a batch are compared with which image by one launch, for terms of fields."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..hypotheses import Hypothesis
    from ..observation import Observation


class FieldBlock(NamedTuple):
    """Poses side by side (`first`, `count`) of the object `name`, all of which one observation is
    of; `rows`: where those stand among all rows of the batch."""

    observation: Observation
    name: str
    first: int
    count: int
    rows: slice


def field_blocks(
    poses: Sequence[Hypothesis],
    rows: Sequence[tuple[int, Observation]],
    with_field: Container[str],
) -> list[FieldBlock]:
    """Of the rows (index of a pose, observation) that have an image, of objects that have a
    field."""
    together: dict[tuple[int, Observation], list[int]] = {}
    for i, seen in rows:
        if poses[i].object in with_field and seen.colours is not None:
            together.setdefault((poses[i].index, seen), []).append(i)
    blocks, row = [], 0
    for (_, observation), numbers in together.items():
        count = len(numbers)
        name = poses[numbers[0]].object
        blocks.append(FieldBlock(observation, name, numbers[0], count, slice(row, row + count)))
        row += count
    return blocks


def seen_in(blocks: Sequence[FieldBlock]) -> list[int]:
    """The poses that some block compares."""
    return [i for block in blocks for i in range(block.first, block.first + block.count)]
