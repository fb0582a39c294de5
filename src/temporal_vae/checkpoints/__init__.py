"""Weights in files: strict loading, other layouts to ours and back, exported graphs, the hub.

Read `loading.py` (what is refused), `single_file.py` and `names.py` (what other files look like), `convert.py`, then
`export.py` and `hub.py`. `embedded/` holds the small model that ships with the package.
"""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.checkpoints.card import default_card
    from temporal_vae.checkpoints.convert import save_single_file
    from temporal_vae.checkpoints.export import export_onnx, export_torch
    from temporal_vae.checkpoints.hub import push

__all__ = ["default_card", "export_onnx", "export_torch", "push", "save_single_file"]

__getattr__ = loaded_on_use(
    __name__,
    {
        "default_card": "card",
        "export_onnx": "export",
        "export_torch": "export",
        "push": "hub",
        "save_single_file": "convert",
    },
)
