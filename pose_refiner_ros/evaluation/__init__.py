# SPDX-License-Identifier: Apache-2.0
"""How good poses are and how long they take: error metrics, the bop and the bench command."""
