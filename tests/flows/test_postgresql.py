"""The same study with Prefect's and MLflow's servers on PostgreSQL: the same front, and all of it to be found there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.map import map_flow
from flows.server import hand_over
from mergecore.config_file import parse_config
from mergecore.run_folder import read_run
from tests.flows.conftest import CountedStudy
from tests.flows.test_losses import Server, accepts, free_port, wait_until

PLACES = [os.environ.get("PATH", ""), *(str(place) for place in Path("/usr/lib/postgresql").glob("*/bin"))]
INITDB = shutil.which("initdb", path=os.pathsep.join(PLACES))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(INITDB is None, reason="needs PostgreSQL's initdb (Debian: postgresql)"),
]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """``user:password@host:port`` of a server of the test's own, with the databases prefect and mlflow."""
    import psycopg2

    assert INITDB is not None
    binaries, port = Path(INITDB).resolve().parent, free_port()
    place = Path(tempfile.mkdtemp())
    user = {"user": "nobody"} if os.geteuid() == 0 else {}  # it refuses to run as root
    if user:
        os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
    (place / "password").write_text("a$ecret")
    (place / "password").chmod(0o644)
    data = place / "data"
    create = [str(binaries / "initdb"), "-D", str(data), "-U", "merge", f"--pwfile={place / 'password'}", "-A", "md5"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL, cwd=place, **user)  # type: ignore[call-overload]
    serve = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(place), "-h", "127.0.0.1"]
    with (place / "log").open("wb") as sink:
        server = subprocess.Popen(serve, stdout=sink, stderr=sink, cwd=place, **user)  # type: ignore[call-overload]
    try:
        wait_until(lambda: accepts("127.0.0.1", port))
        connection = psycopg2.connect(host="127.0.0.1", port=port, user="merge", password="a$ecret", dbname="postgres")
        connection.autocommit = True
        for name in ("prefect", "mlflow"):
            connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        yield f"merge:a%24ecret@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_on_postgresql(
    postgresql: str, counted: CountedStudy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    prefect_port, mlflow_port = free_port(), free_port()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://{postgresql}/prefect")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"postgresql+psycopg2://{postgresql}/mlflow")
    url = f"http://127.0.0.1:{prefect_port}/api"
    prefect = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port), "--no-ui"]
    store = ["--workers=1", f"--artifacts-destination={tmp_path / 'kept'}"]
    tracking = f"http://127.0.0.1:{mlflow_port}"
    servers = [
        Server(prefect, f"{url}/health", tmp_path / "prefect.log"),
        Server(["mlflow", "server", f"--port={mlflow_port}", *store], f"{tracking}/health", tmp_path / "mlflow.log"),
    ]
    try:
        for server in servers:
            server.start()
        monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI")
        config = parse_config({**counted.config, "tracking": {"uri": tracking}})
        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: tmp_path / "prefect"}):
            record = read_run(map_flow(config, str(tmp_path / "out")))
            with get_client(sync_client=True) as client:
                names = [run.name for run in client.read_flow_runs()]
            again = map_flow(config, str(tmp_path / "out"), return_state=True)
            hand_over()
        run = MlflowClient(tracking).get_run(record.summary["tracking"]["run_id"])
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        assert run.data.metrics["hypervolume.real"] == record.summary["hypervolume"]["real"]
        front = MlflowClient(tracking).list_artifacts(run.info.run_id, "run")
        assert "run/front.csv" in [file.path for file in front]
        assert run.inputs.dataset_inputs
    finally:
        for server in servers:
            server.kill()
    assert names == ["counted"]
    assert again.name == "Unchanged"
    assert not list((tmp_path / "prefect").glob("*.db"))
    assert not (home / "mlflow.db").exists()
