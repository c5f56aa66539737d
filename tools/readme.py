"""README.md from nbs/index.ipynb, without Quarto:  python tools/readme.py"""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit that, not this. -->\n\n"


def readme():
    "What a reader of nbs/index.ipynb sees, as files: path -> bytes, README.md and the pictures that cells show"
    notebook = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}
    exporter = MarkdownExporter(config=Config({
        "RegexRemovePreprocessor": {"patterns": [r"#\|\s*hide\b"], "enabled": True},
        "ExtractOutputPreprocessor": {"output_filename_template": "images/index_{cell_index}_{index}{extension}"}}))
    text, found = exporter.from_notebook_node(notebook)
    text = re.sub(r"^#\|.*\n", "", text, flags=re.M)
    text = re.sub(r"\]\((?!\w+:|#|/|\.\./)", "](nbs/", text).replace("](../", "](")
    text = text.replace("![png](", "![What the code above shows](")
    text = NOTE + re.sub(r"[ \t]*\n(?:[ \t]*\n)+", "\n\n", text).strip() + "\n"
    return {"README.md": text.encode()} | {f"nbs/{name}": data for name, data in found["outputs"].items()}


if __name__ == "__main__":
    (ROOT / "nbs/images").mkdir(exist_ok=True)
    for name, data in readme().items(): (ROOT / name).write_bytes(data)
