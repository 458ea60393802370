"""Store the outputs of a run of the training notebook in it, cell by cell.

The run is `papermill nbs/train.ipynb out.ipynb -p gpus 2`.

    python .ci/store_train.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs/train.ipynb"

PAPERMILL = [sys.executable, "-m", "papermill"]

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "nbs").symlink_to(NOTEBOOK.parent)
    subprocess.run(
        [*PAPERMILL, "nbs/train.ipynb", "out.ipynb", "-p", "gpus", "2"],
        check=True,
        cwd=folder,
    )
    run = {
        c["id"]: c for c in json.loads(Path(folder, "out.ipynb").read_text())["cells"]
    }
nb = json.loads(NOTEBOOK.read_text())
for cell in nb["cells"]:
    if cell["cell_type"] != "code":
        continue
    cell["outputs"] = run[cell["id"]]["outputs"]
    streams = [o for o in cell["outputs"] if o["output_type"] == "stream"]
    if streams:  # printed line by line while it ran, stored as one
        joined = streams[0] | {"text": "".join("".join(o["text"]) for o in streams)}
        cell["outputs"] = [
            joined,
            *(o for o in cell["outputs"] if o["output_type"] != "stream"),
        ]
NOTEBOOK.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
subprocess.run(["nbdev_clean", "--fname", NOTEBOOK], check=True)
