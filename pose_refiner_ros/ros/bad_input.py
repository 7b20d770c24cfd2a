# SPDX-License-Identifier: Apache-2.0
"""The errors that a message raises when nothing can be made of it."""


class BadInput(ValueError):
    """A message cannot be used.

    `kind` is a short name for counting (`masks encoding`); the text says what was wrong, with
    which value, and what to do.
    """

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


class TransformError(LookupError):
    """A pose cannot be brought from one frame into another; the text says why."""
