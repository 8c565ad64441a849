"""The README's examples, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(90)
def test_the_examples_run_in_order(empty_database: str, tmp_path: Path) -> None:
    program, *fragments = blocks("python")
    assert len(fragments) == 2
    (tmp_path / "shop.py").write_text(program)
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": empty_database}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("shop.py").endswith("receipts/42.pdf\n")

    enqueue, look = fragments
    (tmp_path / "enqueue.py").write_text(f"import os\n{enqueue}\nopen('run', 'w').write(str(run.id))\napp.close()\n")
    python("enqueue.py")
    (sql,) = blocks("sql")
    with psycopg.connect(empty_database) as connection:
        connection.execute(sql)
    # Cancelling comes last in the fragment and needs a run that nobody has claimed yet, so none is served before it
    # but the one that is waited for.
    program = """
        import subprocess, sys
        from shop import app, order_receipt, GenerateReceipt
        runs = [order_receipt.enqueue(GenerateReceipt(1))]
        run = app.get_run(open("run").read())
        subprocess.run([sys.executable, "-m", "underway.cli.supervisor", "shop:app", "--until-idle"], check=True)
    """
    (tmp_path / "look.py").write_text(re.sub(r"^ +", "", program, flags=re.MULTILINE) + look + "\napp.close()\n")
    printed = python("look.py")
    assert "succeeded\nreceipts/43.pdf\ngenerate 1 succeeded" in printed
    with psycopg.connect(empty_database) as connection:
        counts = connection.execute("select state, count(*) from underway.runs group by 1 order by 1").fetchall()
    assert counts == [("succeeded", 103), ("waiting", 1)]


def test_every_relative_path_exists() -> None:
    root = Path(__file__).parent.parent
    for path in re.findall(r"`((?:underway|tests)/[\w/.]+)`", README):
        assert (root / path).exists(), path
