# SPDX-License-Identifier: Apache-2.0
"""How fields and encoders are learned from photos and from drawn pictures."""
