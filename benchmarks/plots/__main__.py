"""python -m benchmarks.plots [RESULT.json...]"""

import sys
from pathlib import Path

import click

from benchmarks import result_files
from benchmarks.plots import findings
from benchmarks.report import RESULTS


@click.command()
@click.argument("results", nargs=-1, metavar="[RESULT.json]...", type=click.Path(exists=True, path_type=Path))
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, metavar="FOLDER",
              help="Folder for the PNG files. Default: benchmarks/results.")  # fmt: skip
def main(results: tuple[Path, ...], into: Path) -> None:
    """Draw plots of the given results. Without a RESULT, each plot shows the newest result that has its rows."""
    try:
        from benchmarks.plots.drawing import draw
    except ImportError as error:
        sys.exit(f"plots need matplotlib (pip install -e '.[bench]'): {error}")
    given = result_files.load_all(results) if results else result_files.load_folder(RESULTS)
    for plot in findings.plots(given):
        print(draw(plot, into))


if __name__ == "__main__":
    main()
