# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms and cameras. Imports nothing else of the package."""
