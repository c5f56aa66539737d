"""README.md from nbs/index.ipynb, without Quarto:  python tools/readme.py README.md"""
import re, sys
from pathlib import Path

from nbconvert import MarkdownExporter
from nbconvert.preprocessors import RegexRemovePreprocessor

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit that, not this. -->\n\n"


def readme():
    "The text of README.md: what a reader of nbs/index.ipynb sees, its links seen from the top folder"
    exporter = MarkdownExporter()
    exporter.register_preprocessor(RegexRemovePreprocessor(patterns=[r"#\|\s*hide\b"]), enabled=True)
    text, files = exporter.from_filename(str(ROOT / "nbs/index.ipynb"))
    if files["outputs"]: raise SystemExit("nbs/index.ipynb: show pictures by links to nbs/images/, not as outputs")
    text = re.sub(r"^#\|.*\n", "", text, flags=re.M)
    text = re.sub(r"\]\((?!\w+:|#|/|\.\./)", "](nbs/", text).replace("](../", "](")
    return NOTE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__": Path(sys.argv[1]).write_text(readme(), encoding="utf-8")
