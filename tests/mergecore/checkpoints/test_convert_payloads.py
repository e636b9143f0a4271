"""Pickles that would run something are run by no command, whatever way they have of calling it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mergecore.checkpoints.convert import convert
from mergecore.errors import InputError


class Reduced:
    """Runs code when it is unpickled the ordinary way."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (self.code,)


def marker_payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that make a file when an ordinary unpickler reads them, one for each way of calling something."""
    code = f"open({str(marker)!r}, 'w').close()"
    text = code.encode()
    short = b"\x8c" + bytes([len(text)]) + text if len(text) < 256 else b"X" + struct.pack("<I", len(text)) + text

    class Getattr:
        def __reduce__(self) -> tuple[object, ...]:
            return __import__("os").system, (f"touch {marker}",)

    class Stateful:
        def __reduce__(self) -> tuple[object, ...]:
            return eval, (f"({code}, 1)[1]",)

    return {
        "reduce": pickle.dumps({"a": Reduced(code)}),
        "reduce in a state dict": pickle.dumps({"state_dict": {"w": Getattr()}}, protocol=2),
        "eval": pickle.dumps([Stateful()], protocol=4),
        "global": b"cbuiltins\nexec\n(V" + text.replace(b"\n", b" ") + b"\ntR.",
        "inst": b"(V" + text + b"\nibuiltins\nexec\n.",
        "obj": b"(cbuiltins\nexec\nV" + text + b"\no.",
        "newobj": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + short + b"\x85\x81.",
        "stack_global": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + short + b"\x85R.",
        "build": b"\x80\x02cbuiltins\nobject\n)\x81}U\x0c__setstate__cbuiltins\nexec\nsbV" + text + b"\nb.",
        "ext": b"\x80\x02\x82\x01" + short + b"\x85R.",
        "persistent": b"(V" + text + b"\nQ.",
        "nested": pickle.dumps({"inner": pickle.dumps(Reduced(code))}),
        "importer": b"cimportlib\nimport_module\n(Vantigravity\ntR.",
        "module getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(Vtouch " + str(marker).encode() + b"\ntR.",
    }


PAYLOADS = list(marker_payloads(Path("marker")))


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True], ids=["stream", "zip"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_not_run(tmp_path: Path, name: str, packed: bool) -> None:
    marker = tmp_path / "marker"
    content = marker_payloads(marker)[name]
    (tmp_path / "evil.pt").write_bytes(zipped(content) if packed else content)
    before = set(sys.modules)
    with pytest.raises(InputError):
        convert(tmp_path / "evil.pt", tmp_path / "out.safetensors")
    assert not marker.exists()
    assert "antigravity" not in set(sys.modules) - before
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


def test_the_payloads_are_real(tmp_path: Path) -> None:
    """An ordinary unpickler does run most of them, or the test above would prove nothing."""
    ran = set()
    for name, content in marker_payloads(tmp_path / "marker").items():
        # unsafe on purpose, in a process of its own: this is the loading that the project never does
        script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
        subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=False)
        if (tmp_path / "marker").exists():
            ran.add(name)
            (tmp_path / "marker").unlink()
    assert ran >= {"reduce", "reduce in a state dict", "eval", "global", "inst", "obj", "stack_global"}


SESSION = """
import contextlib, io, json, sys
from flows import cli
ended = []
for arguments in json.load(sys.stdin):
    sys.argv = ["mergecore", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as end:
        ended.append([arguments, end.code, said.getvalue()])
json.dump(ended, sys.stdout)
"""
"""Commands one after the other in a process of their own."""


def test_no_command_runs_a_payload(tmp_path: Path, home: Path, pico_config: dict[str, Any]) -> None:
    """`run`, `check` and `convert` on every payload, in every place of a study where a pickle may lie."""
    marker = tmp_path / "marker"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(pico_config))
    commands = []
    for number, content in enumerate(marker_payloads(marker).values()):
        file = f"evil{number}.pt"
        for name in (file, f"model{number}/pytorch_model.bin", f"adapter{number}/adapter_model.bin"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        (tmp_path / f"adapter{number}" / "adapter_config.json").write_text("{}")
        places = [f"base={file}", *(f"models.1.source={name}" for name in (file, f"model{number}", f"adapter{number}"))]
        commands += [["check", "study.yaml", "--set", place] for place in places]
        commands += [["run", "study.yaml", "--set", f"models.0.source={file}"]]
        commands += [["convert", file, "out.safetensors"]]
    arrays = {f"x_{split}": np.array([Reduced(f"open({str(marker)!r}, 'w')")] * 2) for split in ("validation", "test")}
    np.savez(tmp_path / "evil.npz", **arrays, y_validation=np.zeros(2, int), y_test=np.zeros(2, int))
    commands += [[verb, "study.yaml", "--set", "tasks.0.dataset.path=evil.npz"] for verb in ("check", "run")]
    done = subprocess.run(
        [sys.executable, "-c", SESSION], input=json.dumps(commands), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert len(ended) == len(commands)
    for command, code, said in ended:
        assert code == 2, (command, said)
        assert len(said.strip().splitlines()) == 1, said
        if "models.0" in command[-1]:
            assert f"mergecore convert {command[-1].partition('=')[2]} evil" in said
    assert not marker.exists()
    assert not list(tmp_path.glob("*.safetensors"))
