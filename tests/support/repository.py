"""Root of the repository, for tests of files beside the package, and the Python of its pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def page_blocks(page: str) -> list[str]:
    """Return the blocks of Python in a page of docs/."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / f"docs/{page}.md").read_text(), re.M | re.S)
