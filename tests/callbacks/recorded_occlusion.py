"""Occlusion whose results a test can read."""

from __future__ import annotations

from typing import Any

from lightning_cnnviz import MemorySink, OcclusionMonitor
from lightning_cnnviz.core.images.occlusion import OcclusionMaps
from lightning_cnnviz.report import Report


class Occlusion(OcclusionMonitor):
    """Keeps its results; cheap."""

    def __init__(self, **options: Any) -> None:
        self.results: list[OcclusionMaps] = []
        options = {"images": 4, "size": 6, "stride": 6, "on_error": "raise", "sinks": [MemorySink()], **options}
        super().__init__(**options)

    def render(self, result: OcclusionMaps) -> Report:
        self.results.append(result)
        return super().render(result)
