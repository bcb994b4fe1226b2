"""An edit for an encoder that only answers requests: a server on this machine stands for the API, and is sent images, nothing else.

Run it with ``python examples/edit_behind_an_api.py [OUT]``. With an API of your own, leave the server out and write its address after
``model=``; its token is read from the environment variable EVENHAND_TOKEN.
"""

import json
import subprocess
import sys
from pathlib import Path

import evenhand as eh
from evenhand.data.synthetic import SyntheticConfig, write_cohort

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-api")

# 1. Images and a table: patients of group A carry a fine texture, and more of them are ill.
write_cohort(eh.make_cohort(SyntheticConfig(n_patients=300, images_per_patient=(1, 1))), out / "raw")
eh.prepare_csv(out / "raw" / "metadata.csv", out / "data", images=out / "raw", labels=["label"], attributes=["group"], size=64)

# 2. Somebody's encoder behind the Open Inference Protocol; the server says where it listens.
server = subprocess.Popen(
    [sys.executable, "-m", "evenhand", "serve", "model=demo", "port=0", "grid=64,64"], stdout=subprocess.PIPE, text=True
)
try:
    assert server.stdout is not None
    address = server.stdout.readline().split()[-1]
    common = [f"data={out / 'data'}", f"model={address}", "trainer.progress=false"]

    # 3. The edit: 16 numbers, trained through a network that learns the encoder's answers, under a hard budget of images; 1.5 is the price
    # of a thousand.
    edit = eh.edit_train(
        eh.compose(
            "edit train",
            [*common, "method=gezo", "method.budget=3000", "method.price=1.5", "method.reference_images=64", "method.validation_images=45",
             "method.surrogate_steps=300", "method.edit_steps=60", "method.controls=false", f"out={out / 'edit'}"],
        )
    )
    paid = json.loads((edit.root / "edit.json").read_text())["search"]
    print(f"images sent by the search: {paid['images']}, cost {paid['cost']:.2f}, ended by: {paid['ended_by']}")

    # 4. A probe without and one with the edit on every image, audited and compared.
    audit = ["method=linear_probe", "audit.bootstrap=200", "audit.permutations=200", "audit.details=false"]
    for name, options in {"plain": [], "edited": [f"edit={edit.root}"]}.items():
        eh.train(eh.compose("train", [*common, *audit, *options, f"out={out / name}"]))
    table = eh.compare([out / "plain", out / "edited"], out / "compare.html").to_table()
    print(table[table["metric"].isin(["auc", "equalized_odds"])].to_string(index=False))
finally:
    server.terminate()
    server.wait()
