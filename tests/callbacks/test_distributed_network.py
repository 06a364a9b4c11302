"""On two processes the views of the network itself come once, whole, and every process keeps the same weights."""

from __future__ import annotations

from pathlib import Path

import processes
import torch
from callbacks.ddp_network_run import main

from lightning_cnnviz.report import Gallery, Table


def test_two_processes_show_once_and_renormalize_alike(tmp_path: Path) -> None:
    out = tmp_path / "two.pt"
    processes.run(main, (2, out))
    found = torch.load(out, weights_only=False)
    assert found["same"] == [True, True]
    assert float(found["weight"].flatten(1).square().mean(1).sqrt().max()) <= 0.05 + 1e-6
    tables = [item for view, item in found["items"] if view == "layer_table" and isinstance(item, Table)]
    assert [table.name for table in tables] == ["layers", "does_not_fit"]
    filters = [item for view, item in found["items"] if view == "filters" and isinstance(item, Gallery)]
    assert [gallery.name for gallery in filters] == ["features.0"]
    maps = [item for view, item in found["items"] if view == "activation_maps"]
    assert [gallery.name for gallery in maps] == ["features.0", "features.4"]
    for gallery in maps:  # three images, shared by two processes
        assert len({row.caption for row in gallery.rows}) == len(gallery.rows) == 3
        assert all(len(row.tiles) > 1 for row in gallery.rows)
