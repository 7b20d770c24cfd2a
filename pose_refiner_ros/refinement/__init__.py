# SPDX-License-Identifier: Apache-2.0
"""Poses that fit what is seen: evidence, its normal equations, and the solver."""
