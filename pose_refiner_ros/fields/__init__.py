# SPDX-License-Identifier: Apache-2.0
"""Radiance fields: what one is (`field`), the two kinds (`grid`, `mlp`), their `field_file`."""
