"""A worker of ``launch``: ``python -m lecture6.parallel FOLDER RANK SIZE PARENT TIMEOUT``."""

import sys
from pathlib import Path

from lecture6.parallel.launch import work

if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5]))
