"""python -m benchmarks.plots [RESULT.json...]"""

import sys
from pathlib import Path

import click

from benchmarks import documents
from benchmarks.plots import findings
from benchmarks.report import RESULTS


@click.command()
@click.argument("results", nargs=-1, metavar="[RESULT.json]...", type=click.Path(exists=True, path_type=Path))
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, metavar="FOLDER",
              help="Where the PNG files go; benchmarks/results if not given.")  # fmt: skip
def main(results: tuple[Path, ...], into: Path) -> None:
    """Draw what was measured; without a RESULT each plot shows the newest that has its rows."""
    try:
        from benchmarks.plots.drawing import draw
    except ImportError as error:
        sys.exit(f"no plots without matplotlib (pip install -e '.[bench]'): {error}")
    given = documents.load_all(results) if results else documents.load_folder(RESULTS)
    for picture in findings.pictures(given):
        print(draw(picture, into))


if __name__ == "__main__":
    main()
