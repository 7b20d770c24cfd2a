# SPDX-License-Identifier: Apache-2.0
"""Files of any kind: written whole or not at all, cached, found. Imports nothing of the package."""
