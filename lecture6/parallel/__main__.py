"""A worker of ``launch``: ``python -m lecture6.parallel FOLDER RANK SIZE PARENT TIMEOUT``."""

import sys
from pathlib import Path

from lecture6.parallel.launch import work

if __name__ == "__main__":
    folder, rank, size, parent, timeout = sys.argv[1:]
    work(Path(folder), int(rank), int(size), int(parent), float(timeout))
