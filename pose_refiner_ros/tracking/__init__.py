# SPDX-License-Identifier: Apache-2.0
"""Which object of this frame is which of the last."""
