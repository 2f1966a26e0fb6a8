"""Let torchvision's wheel be imported beside a CPU build of PyTorch.

The wheel on PyPI is built for CUDA and registers its operators from a library that such a PyTorch
cannot load; the import then fails on an operator that does not exist. open_clip imports torchvision
but calls none of these operators, so declaring them is enough for the tests.
"""

from __future__ import annotations

import sys

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = None  # kept alive: the declarations vanish with the object


def define_missing_torchvision_operators() -> None:
    """Declare the operators, where and only where torchvision cannot be imported without them."""
    global _library
    import torch

    if _library is not None or "torchvision" in sys.modules:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        _library.define("nms" + _SIGNATURE)
        _library.define("qnms" + _SIGNATURE)
