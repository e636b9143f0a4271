"""Machines and servers that go away in the middle of a study: the same front, or a sentence and the rest later."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows.map import map_flow
from flows.server import hand_over
from mergecore.config_file import parse_config
from mergecore.errors import EvaluationError
from mergecore.run_folder import read_run
from mergecore.run_record import RunRecord
from tests.flows.conftest import CountedStudy
from tests.flows.test_faults import finish, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@contextmanager
def meanwhile(study: CountedStudy, calls: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something once the study has made so many calls; it must have happened."""
    ended, failed = threading.Event(), []

    def watch() -> None:
        while sum(study.calls.values()) < calls and not ended.is_set():
            time.sleep(0.02)
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        early = sum(study.calls.values()) >= calls
        ended.set()
        thread.join()
    assert early
    assert not failed


def calm_front(study: CountedStudy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """The same study where nothing is lost, from nothing known."""
    monkeypatch.setenv("MERGECORE_HOME", str(tmp_path / "calm home"))
    study.log.unlink()
    return read_run(map_flow(parse_config(study.config), str(tmp_path / "calm")))


@pytest.fixture
def slow(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> CountedStudy:
    """A counted study of some seconds; its folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "study"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "study"))
    return CountedStudy(tmp_path / "study", sleep=0.3)


@pytest.mark.usefixtures("prefect_api")
def test_one_of_two_machines_dies(
    slow: CountedStudy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        slow.config["execution"] = {**slow.config["execution"], "ray_address": cluster.address}
        with meanwhile(slow, 8, lambda: cluster.remove_node(machines[1], allow_graceful=False)):
            record = read_run(map_flow(parse_config(slow.config), str(tmp_path / "out")))
        again = sum(count - 1 for count in slow.calls.values())
        assert again <= 2 * 2  # what the dead machine was doing, and what had not come from it yet
        assert record.summary["evaluations"]["failed"] == 0
        calm = calm_front(slow, home, tmp_path, monkeypatch)  # on the machine that is left
    finally:
        cluster.shutdown()
    assert record.front.equals(calm.front)


def ip(*arguments: str) -> None:
    """The tool of that name; it must succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def network(hosts: int) -> Iterator[tuple[str, list[str]]]:
    """Hosts of one CPU machine that reach each other only through a bridge: its address, and the hosts' names."""
    tag, third = f"mg{os.getpid() % 100000}", os.getpid() % 256
    address, names = f"10.199.{third}.1", [f"{tag}h{number}" for number in range(hosts)]
    try:
        ip("link", "add", f"{tag}b", "type", "bridge")
        ip("addr", "add", f"{address}/24", "dev", f"{tag}b")
        ip("link", "set", f"{tag}b", "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", f"{tag}b", "up")
            ip("-n", name, "addr", "add", f"10.199.{third}.{number + 2}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield address, names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", f"{tag}b"], capture_output=True)


def can_have_a_network() -> bool:
    with suppress(OSError, subprocess.CalledProcessError), network(1):
        return True
    return False


@pytest.mark.usefixtures("prefect_api")
def test_the_network_loses_one_of_two_machines(
    slow: CountedStudy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a network namespace of its own; one is cut off, which its processes survive."""
    if "MERGECORE_CUT_NETWORKS" not in os.environ:
        pytest.skip("cuts networks for minutes, more where Ray is slow to notice: set MERGECORE_CUT_NETWORKS")
    if not can_have_a_network():
        pytest.skip("no network namespaces here (they take root and iproute2)")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run([*ray, "get-auth-token", "--generate"], check=True, capture_output=True)  # all machines have it
    start = [*ray, "start", "--block", "--disable-usage-stats"]
    changes = {"RAY_AUTH_MODE": "token"}
    changes |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}  # it notices soon
    started: list[subprocess.Popen[bytes]] = []

    def run_on(command: list[str]) -> None:
        with (tmp_path / "ray.log").open("ab") as sink:
            environment = {**os.environ, **changes}
            started.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, start_new_session=True))

    def joined(head: str) -> bool:
        status = subprocess.run(
            [*ray, "status", f"--address={head}"], capture_output=True, text=True, env={**os.environ, **changes}
        )
        return "/2.0 CPU" in status.stdout

    # paths of Ray's sockets have to be short
    with network(2) as (address, names), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        try:
            port = free_port()
            head = [f"--node-ip-address={address}", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
            run_on([*start, "--head", *head, f"--temp-dir={place}"])
            wait_until(lambda: accepts(address, port))
            for number, name in enumerate(names):
                own = f"--node-ip-address={address.rsplit('.', 1)[0]}.{number + 2}"
                join = [*start, f"--address={address}:{port}", own, "--num-cpus=1"]
                # Ray gives up after 30 s, which a busy machine may need
                run_on(["ip", "netns", "exec", name, "bash", "-c", 'until "$@"; do sleep 1; done', "join", *join])
            wait_until(lambda: joined(f"{address}:{port}"), 200)
            slow.config["execution"] = {**slow.config["execution"], "ray_address": f"{address}:{port}"}
            monkeypatch.setenv("RAY_AUTH_MODE", "token")
            with meanwhile(slow, 8, lambda: ip("link", "set", names[1], "down")):
                finish(launch(slow, home, tmp_path / "out"))
            again = sum(count - 1 for count in slow.calls.values())
            assert again <= 2 * 2  # what the lost machine was doing, and what had not come from it yet
            slow.log.unlink()
            finish(launch(slow, tmp_path / "calm home", tmp_path / "calm"))  # on the machine that is left
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()
    record = read_run(tmp_path / "out")
    assert record.summary["evaluations"]["failed"] == 0
    assert record.front.equals(read_run(tmp_path / "calm").front)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def accepts(host: str, port: int) -> bool:
    """Whether something answers there."""
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server that can be killed and started again.

    Args:
        command: of python -m.
        url: that answers when it is up.
        log: its output.
    """

    def __init__(self, command: list[str], url: str, log: Path) -> None:
        self._command, self._url, self._log = [sys.executable, "-m", *command], url, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import httpx

        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(self._command, stdout=sink, stderr=sink, start_new_session=True)
        for _ in range(600):
            with suppress(httpx.HTTPError):
                if httpx.get(self._url, timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(self._log.read_text()[-2000:])

    def kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()

    def away(self, seconds: float) -> None:
        """Gone for a while."""
        self.kill()
        time.sleep(seconds)
        self.start()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    """Those that a test started; killed when it ends."""
    started: list[Server] = []
    yield started
    for server in started:
        server.kill()


@pytest.mark.usefixtures("prefect_api", "ray_cluster")
def test_mlflow_is_away_for_a_while(
    slow: CountedStudy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: list[Server]
) -> None:
    port = free_port()
    store = [f"--backend-store-uri=sqlite:///{tmp_path / 'server.db'}", f"--artifacts-destination={tmp_path / 'kept'}"]
    url = f"http://127.0.0.1:{port}"
    command = ["mlflow", "server", f"--port={port}", "--workers=1", *store]
    server = Server(command, f"{url}/health", tmp_path / "mlflow.log")
    servers.append(server)
    server.start()
    slow.config["tracking"] = {"uri": url}
    with meanwhile(slow, 30, lambda: server.away(60)):  # over the end of the round, when all of it is logged
        record = read_run(map_flow(parse_config(slow.config), str(tmp_path / "out")))
    assert set(slow.calls.values()) == {1}
    from mlflow import MlflowClient

    run = MlflowClient(url).get_run(record.summary["tracking"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["hypervolume.real"] == record.summary["hypervolume"]["real"]
    assert MlflowClient(url).list_artifacts(run.info.run_id)


@pytest.mark.usefixtures("ray_cluster")
def test_the_prefect_server_is_started_again(
    slow: CountedStudy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: list[Server]
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    port = free_port()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    url = f"http://127.0.0.1:{port}/api"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    server = Server(command, f"{url}/health", tmp_path / "prefect.log")
    servers.append(server)
    server.start()
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: tmp_path / "prefect"}),
        meanwhile(slow, 10, lambda: server.away(5)),
    ):
        state = map_flow(parse_config(slow.config), str(tmp_path / "out"), return_state=True)
        hand_over()
        assert state.is_completed()
    assert set(slow.calls.values()) == {1}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which takes root")
@pytest.mark.usefixtures("prefect_api", "ray_cluster")
def test_the_disk_under_the_ledger_is_full(
    slow: CountedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk here: {mounted.stderr.decode().strip()}")
    try:
        monkeypatch.setenv("MERGECORE_HOME", str(small))
        config = parse_config({**slow.config, "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}})
        filler = small / "filler"

        def fill() -> None:
            with suppress(OSError), filler.open("wb", buffering=0) as sink:
                while True:
                    sink.write(b"\0" * 1024)

        with meanwhile(slow, 10, fill), pytest.raises(EvaluationError, match="cannot be written") as told:
            map_flow(config, str(tmp_path / "out"))
        assert "\n" not in str(told.value)
        before = slow.calls
        filler.unlink()
        record = read_run(map_flow(config, str(tmp_path / "out")))
        kept = record.summary["evaluations"]["known_pairs"]
        assert kept >= 4
        assert set(before) <= set(slow.calls)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
