"""Run notebooks from top to bottom, and fail with the first cell that does. Nothing is written."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    for name in sys.argv[1:]:
        notebook = nbformat.read(name, as_version=4)
        nbformat.validate(notebook)
        where = {"metadata": {"path": str(Path(name).parent)}}
        NotebookClient(notebook, timeout=300, resources=where).execute()
        empty = [
            cell.id for cell in notebook.cells if cell.cell_type == "code" and not cell.outputs
        ]
        print(f"{name}: {len(notebook.cells)} cells", f"(no output: {empty})" if empty else "")


if __name__ == "__main__":
    main()
