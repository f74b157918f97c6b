"""Set the address of the repository wherever the course names it (`make repository URL=...`)."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_CONFIG = re.compile(r'(?<=^  url: ")[^"]*(?="$)', re.MULTILINE)
BRANCH = re.compile(r"(?<=^  branch: )\S+$", re.MULTILINE)
IN_NOTEBOOK = re.compile(r'(?<=REPOSITORY = \\")[^"\\]*(?=\\")')  # as the notebook's JSON has it


def places(root: Path = ROOT) -> dict[Path, re.Pattern]:
    """Return the files that hold the address, each with the pattern that finds it there."""
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    return {root / "_config.yml": IN_CONFIG} | dict.fromkeys(notebooks, IN_NOTEBOOK)


def addresses(root: Path = ROOT) -> dict[Path, list[str]]:
    """Return what each of these files holds: one address, "" until it is set."""
    return {path: pattern.findall(path.read_text("utf8")) for path, pattern in places(root).items()}


def set_address(url: str, branch: str = "main", root: Path = ROOT) -> None:
    """Write the address into each of these files, and the branch that the buttons open.

    Raises:
        ValueError: it is not that of a GitHub repository, the only kind that Colab opens, or the
            branch is no name of one.
    """
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise ValueError(f"{url!r} is not of the form https://github.com/owner/name")
    if not re.fullmatch(r"\w[\w./-]*", branch):
        raise ValueError(f"{branch!r} is not the name of a branch")
    for path, pattern in places(root).items():
        path.write_text(pattern.sub(url, path.read_text("utf8")), "utf8", newline="\n")
    config = root / "_config.yml"
    config.write_text(BRANCH.sub(branch, config.read_text("utf8")), "utf8", newline="\n")


if __name__ == "__main__":
    try:
        set_address(*sys.argv[1:])
    except ValueError as error:
        sys.exit(f"make repository: {error}")
