"""`convert` gives what ``state_dict()`` gave, from every format of torch.save, and never runs what a file says."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergecore.convert import convert
from mergecore.errors import InputError


class Vanished(torch.nn.Module):
    """Removed from its module before the file is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
        self.tied = torch.nn.Linear(3, 4, bias=False)
        self.tied.weight = self.layer.weight
        self.register_buffer("steps", torch.tensor([5, 6]))
        self.register_buffer("cache", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)
        self.halved = torch.nn.Parameter(torch.randn(2, 2).to(torch.bfloat16))
        self.flags = torch.nn.Parameter(torch.tensor([True, False]), requires_grad=False)
        self.turned = torch.nn.Parameter(torch.randn(4, 3).T)
        whole = torch.randn(10)
        self.register_buffer("part", whole[3:7])
        self.register_buffer("rest", whole[5:])


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_whole_module_of_a_class_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, wrap: bool
) -> None:
    torch.manual_seed(0)
    module = Vanished()
    expected = dict(module.state_dict())
    torch.save(
        torch.nn.DataParallel(module) if wrap else module, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped
    )
    monkeypatch.delattr(sys.modules[__name__], "Vanished")
    found = convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    same(load_file(tmp_path / "m.safetensors"), expected)
    assert found.tensors == len(expected)
    assert found.parameters == sum(tensor.numel() for tensor in expected.values())
    assert any(name.endswith(".Vanished") for name in found.classes)


def test_modules_of_libraries(tmp_path: Path) -> None:
    import open_clip
    import torchvision
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = {**shape, "image_size": 8, "patch_size": 4}
    clip = CLIPConfig(text_config={**shape, "vocab_size": 20}, vision_config=vision, projection_dim=4)
    modules = {
        "transformers": CLIPModel(clip),
        "torchvision": torchvision.models.squeezenet1_1(num_classes=3),
        "open_clip": open_clip.create_model("RN50", load_weights=False).visual.layer1,
    }
    for name, module in modules.items():
        torch.save(module, tmp_path / f"{name}.pt")
        convert(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors")
        same(load_file(tmp_path / f"{name}.safetensors"), dict(module.state_dict()))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_state_dicts(tmp_path: Path, zipped: bool, key: str | None) -> None:
    state = {"a": torch.randn(3, 2), "b.c": torch.arange(4), "d": torch.randn(2).half(), "e": torch.empty(0, 3)}
    content = OrderedDict(state) if key is None else {key: state, "epoch": 3, "best": 0.5}
    torch.save(content, tmp_path / "s.pth", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "s.pth", tmp_path / "s.safetensors")
    same(load_file(tmp_path / "s.safetensors"), state)


def marker_payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that make a file when an ordinary unpickler reads them, one for each way of calling something."""
    code = f"open({str(marker)!r}, 'w').close()"
    text = code.encode()
    short = b"\x8c" + bytes([len(text)]) + text if len(text) < 256 else b"X" + struct.pack("<I", len(text)) + text

    class Reduced:
        def __reduce__(self) -> tuple[object, ...]:
            return exec, (code,)

    class Getattr:
        def __reduce__(self) -> tuple[object, ...]:
            return __import__("os").system, (f"touch {marker}",)

    class Stateful:
        def __reduce__(self) -> tuple[object, ...]:
            return eval, (f"({code}, 1)[1]",)

    return {
        "reduce": pickle.dumps({"a": Reduced()}),
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
        "nested": pickle.dumps({"inner": pickle.dumps(Reduced())}),
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
        script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
        subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=False)
        if (tmp_path / "marker").exists():
            ran.add(name)
            (tmp_path / "marker").unlink()
    assert ran >= {"reduce", "reduce in a state dict", "eval", "global", "inst", "obj", "stack_global"}


def test_no_command_runs_a_payload(tmp_path: Path, home: Path) -> None:
    """`run`, `check` and `convert`, as a person would call them."""
    marker = tmp_path / "marker"
    (tmp_path / "evil.pt").write_bytes(marker_payloads(marker)["reduce"])
    torch.save({"w": torch.ones(2)}, tmp_path / "fine.pt")
    task = {"name": "t", "evaluator": "python", "metric": "m", "direction": "maximize"}
    config = {
        "base": "fine.pt",
        "models": [{"name": "a", "source": "evil.pt"}, {"name": "b", "source": "fine.pt"}],
        "tasks": [{**task, "args": {"function": "math:sqrt"}}],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    for arguments in (["check", "study.yaml"], ["run", "study.yaml"], ["convert", "evil.pt", "out.safetensors"]):
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr + ended.stdout
        assert len(ended.stderr.strip().splitlines()) == 1
        assert not marker.exists()
    assert "mergecore convert evil.pt evil.safetensors" in subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "check", "study.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stderr.replace("\n", " ")


def test_damaged_and_crafted_files(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(50, 50)}, tmp_path / "good.pt")
    torch.save({"w": torch.randn(50, 50)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    tensors = {
        "beyond": rebuild + storage + b"K\x02(K\x04t(K\x01t\x89}tR.",
        "negative": rebuild + storage + b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89}tR.",
        "huge": rebuild + storage + b"K\x00(J\xff\xff\xff\x7ft(K\x01t\x89}tR.",
    }
    for name, content in tensors.items():
        with zipfile.ZipFile(tmp_path / f"{name}.pt", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}U\x01w" + content[2:-1] + b"s.")
            archive.writestr("a/data/0", bytes(16))
    whole = {name: (tmp_path / name).read_bytes() for name in ("good.pt", "old.pt")}
    broken = {
        "zip, cut": whole["good.pt"][:-200],
        "stream, cut": whole["old.pt"][:-200],
        "stream, cut early": whole["old.pt"][:40],
        "memo of four billion": b"\x80\x02]r\xff\xff\xff\xff0].",
        "long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "text": b"not a pickle at all",
        "nothing": b"",
        "nested": b"(" * 100_000 + b".",
    }
    for name, content in broken.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    for name in (*tensors, *broken, "script"):
        with pytest.raises(InputError) as caught:
            convert(tmp_path / f"{name}.pt", tmp_path / "out.safetensors")
        assert "\n" not in str(caught.value), name
        assert not (tmp_path / "out.safetensors").exists()


def test_what_stands_in_the_way(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "s.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    for source, target, message in (
        ("missing.pt", "o.safetensors", "does not exist"),
        ("s.pt", "taken.safetensors", "already exists"),
        ("s.pt", "o.bin", "does not end in .safetensors"),
        ("none.pt", "o.safetensors", "no module and no state dict"),
    ):
        with pytest.raises(InputError, match=message):
            convert(tmp_path / source, tmp_path / target)
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"
