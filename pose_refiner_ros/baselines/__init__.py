# SPDX-License-Identifier: Apache-2.0
"""The papers' own procedures, as published: what the solver is compared with."""
