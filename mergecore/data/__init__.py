"""Examples of a task: read from where they are, decoded or tokenised once, mapped into memory by everyone after.

`images.load_images`, `texts.load_texts` and `texts.load_token_stream` are what evaluators call.
"""

from __future__ import annotations

from mergecore.data.sources import DATA_SOURCES, locate_data

__all__ = ["DATA_SOURCES", "locate_data"]
