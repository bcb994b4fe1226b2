"""A set as the library ``datasets`` publishes it: parquet files of images, and a README.md with its features."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': benign
          '1': malignant
  splits:
  - name: train
---
# A card
"""


def write(root: Path, *, patients: int = 24, seed: int = 0, stored: bool = True) -> None:
    """Two images a person in train (two files) and test; one label is -1; class names in the files, or in README.md only."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, object]]] = {"train-00000-of-00002": [], "train-00001-of-00002": [], "test-00000-of-00001": []}
    for k in range(patients):
        for n in range(2):
            pixels = rng.integers(0, 150, (40, 48), dtype=np.uint8)
            if k % 2:
                pixels[:20, :20] = 240
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG" if n else "PNG")
            rows[list(rows)[k % 3]].append({
                "image": {"bytes": stream.getvalue(), "path": f"{k}_{n}.png"}, "label": -1 if k == 4 and n else k % 2,
                "patient_id": f"person {k}", "sex": "fm"[k // 2 % 2], "age": None if k == 5 else 30.5 + k, "boxes": [1, 2],
            })
    (root / "data").mkdir()
    names = {"label": {"names": ["benign", "malignant"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    for name, part in rows.items():
        table = pa.Table.from_pandas(pd.DataFrame(part), preserve_index=False)
        if stored:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
        parquet.write_table(table, root / "data" / f"{name}.parquet")
    (root / "README.md").write_text(README)
