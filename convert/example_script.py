"""Generate `use.py`, a PyTorch script that classifies images with an exported run."""

from __future__ import annotations

from lattec_jax.data.images.preprocess import Preprocess

_NEEDS = {"openclip": "open_clip_torch", "huggingface": "transformers"}
_IMPORTS = {
    "openclip": "import open_clip\nimport torch\nfrom PIL import Image\n",
    "huggingface": "import numpy as np\nimport torch\nfrom PIL import Image\n",
}
_LOAD = {
    "openclip": """\
model, pixels = open_clip.create_model_from_pretrained(f"local-dir:{here}")
model.eval()
""",
    "huggingface": "model = CLIPModel.from_pretrained(here).eval()\n",
}
_LOAD_FROZEN = {
    "openclip": """\
frozen, _ = open_clip.create_model_from_pretrained(f"local-dir:{{here / '{0}'}}")
frozen.eval()
""",
    "huggingface": "frozen = CLIPModel.from_pretrained(here / {0!r}).eval()\n",
}
_FEATURES = {
    "openclip": """\
def features(model, image):
    return model.encode_image(image, normalize=True)
""",
    "huggingface": """\
def features(model, image):
    pooled = model.vision_model(pixel_values=image).pooler_output
    return torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)
""",
}
# Like open_clip: resize in the image's own mode, then convert to RGB.
_PIXELS = """\
def pixels(image):
    size, resample = {size}, Image.Resampling.{resample}
{resize}
    array = np.asarray(image.convert("RGB"), np.float32) / 255
    array = (array - np.float32({mean})) / np.float32({std})
    return torch.from_numpy(array).permute(2, 0, 1)
"""
_SQUASH = "    image = image.resize((size, size), resample)"
_SHORTEST = """\
    width, height = image.size
    side = min(width, height)
    image = image.resize((int(size * width / side), int(size * height / side)), resample)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    image = image.crop((left, top, left + size, top + size))"""
_SCRIPT = '''\
"""Classify images: python use.py IMAGE ...    (pip install {needs} safetensors)"""

import json
import sys
from pathlib import Path

{imports}from safetensors.torch import load_file
{more}
here = Path(__file__).resolve().parent
classes = json.loads((here / "classes.json").read_text(encoding="utf-8"))
vectors = load_file(here / "prototypes.safetensors")  # a unit vector for each class
{load}

{functions}

for path in sys.argv[1:]:
    with torch.no_grad():
        image = pixels(Image.open(path)).unsqueeze(0)
        cosines = features(model, image) @ vectors["prototypes"].T
{two}        scores = (classes["scale"] * cosines).softmax(dim=-1)[0]
    best = int(scores.argmax())
    answer = {{"image": path, "class": classes["class_names"][best], "scores": scores.tolist()}}
    print(json.dumps(answer))
'''
_TWO = """\
        # Two models classify together: the adapted one and the pre-trained one.
        cosines = (cosines + features(frozen, image) @ vectors["frozen_prototypes"].T) / 2
"""


def script(to: str, preprocess: Preprocess, frozen: str | None) -> str:
    """Return the script; `frozen`: folder of the second model, if the run classifies with two.

    For "huggingface", the preprocessing is square and not "longest". open_clip has its own.
    """
    functions = _FEATURES[to]
    if to == "huggingface":
        functions += "\n\n" + _PIXELS.format(
            size=preprocess.size[0],
            resample=preprocess.interpolation.upper(),
            resize=_SQUASH if preprocess.resize_mode == "squash" else _SHORTEST,
            mean=list(preprocess.mean),
            std=list(preprocess.std),
        )
    return _SCRIPT.format(
        needs=_NEEDS[to] + (" torch" if to == "huggingface" else ""),
        imports=_IMPORTS[to],
        more="from transformers import CLIPModel\n" if to == "huggingface" else "",
        load=_LOAD[to] + (_LOAD_FROZEN[to].format(frozen) if frozen else ""),
        functions=functions,
        two=_TWO if frozen else "",
    )
