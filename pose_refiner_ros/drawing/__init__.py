# SPDX-License-Identifier: Apache-2.0
"""Pictures of results, for people: outlines on the image, all objects from any side."""
