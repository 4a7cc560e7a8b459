"""What a user would write without convexport: Pillow, onnxruntime as it comes, batches of 64, JSON lines.

python benchmarks/by_hand.py model.onnx labels.txt images/ >labels.jsonl
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
labels = Path(sys.argv[2]).read_text().split("\n")
files = sorted(path for path in Path(sys.argv[3]).rglob("*") if path.is_file())
_, height, width, channels = session.get_inputs()[0].shape
for start in range(0, len(files), 64):
    batch = []
    for file in files[start : start + 64]:
        with Image.open(file) as image:
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            batch.append(np.asarray(image).reshape(height, width, channels))
    for file, row in zip(files[start : start + 64], session.run(None, {"images": np.stack(batch)})[0], strict=False):
        top = [
            {"label": labels[i], "index": int(i), "probability": round(float(row[i]), 6)} for i in (-row).argsort()[:3]
        ]
        print(json.dumps({"input": str(file), **top[0], "top": top}))
