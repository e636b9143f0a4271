"""Opening checkpoints: every format gives the same content, nothing is unpickled, faults are named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mergecore.checkpoints.checkpoint import TensorInfo, from_state_dict, locate, open_checkpoint, write_safetensors
from mergecore.errors import InputError
from tests.conftest import random_state, write_checkpoint


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (open, (str(self.target), "w"))


def write_shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    names = list(state)
    places = {}
    for number, part in enumerate((names[:2], names[2:])):
        file = f"model-{number}.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_every_format_has_the_same_fingerprint(tmp_path: Path) -> None:
    state = random_state(0)
    write_checkpoint(tmp_path / "a.safetensors", state)
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.th")
    torch.save(state, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "folder").mkdir()
    write_checkpoint(tmp_path / "folder" / "model.safetensors", state)
    write_shards(tmp_path / "shards", state)
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / "pytorch_model.bin")
    prints = {
        open_checkpoint(tmp_path / name, home=tmp_path).fingerprint().total
        for name in ("a.safetensors", "b.pt", "c.th", "d.bin", "folder", "shards", "torch")
    }
    assert prints == {from_state_dict(dict(reversed(state.items()))).fingerprint().total}


def test_fingerprint_cache_notices_a_changed_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_checkpoint(file, random_state(0))
    first = open_checkpoint(file, home=tmp_path).fingerprint(tmp_path / "cache")
    assert open_checkpoint(file, home=tmp_path).fingerprint(tmp_path / "cache") == first
    assert len(list((tmp_path / "cache").iterdir())) == 1
    write_checkpoint(file, random_state(1))
    assert open_checkpoint(file, home=tmp_path).fingerprint(tmp_path / "cache").total != first.total


def test_damaged_fingerprint_cache_is_recomputed(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_checkpoint(file, random_state(0))
    first = open_checkpoint(file, home=tmp_path).fingerprint(tmp_path / "cache")
    next((tmp_path / "cache").iterdir()).write_text("{")
    assert open_checkpoint(file, home=tmp_path).fingerprint(tmp_path / "cache") == first


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_a_payload_is_not_executed(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    trap = tmp_path / "executed"
    content = {"w": torch.ones(2), "x": Payload(trap)} if wrapped else Payload(trap)
    torch.save(content, tmp_path / f"evil{suffix}")
    with (tmp_path / f"raw{suffix}").open("wb") as sink:
        pickle.dump(Payload(trap), sink)
    for name in ("evil", "raw"):
        with pytest.raises(InputError):
            open_checkpoint(tmp_path / f"{name}{suffix}", home=tmp_path)
    assert not trap.exists()


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"mergecore convert .*module\.pt module\.safetensors") as caught:
        open_checkpoint(tmp_path / "module.pt", home=tmp_path)
    assert "refused" in caught.value.message


@pytest.mark.parametrize("cut", [4, 60, -3])
def test_truncated_files_are_named(tmp_path: Path, cut: int) -> None:
    for name in ("a.safetensors", "b.pt"):
        file = tmp_path / name
        if name.endswith("pt"):
            torch.save(random_state(0), file)
        else:
            write_checkpoint(file, random_state(0))
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(InputError, match=name):
            open_checkpoint(file, home=tmp_path)


def test_faults_of_folders_and_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no model")
    write_shards(tmp_path / "lost", random_state(0))
    (tmp_path / "lost" / "model-1.safetensors").unlink()
    write_shards(tmp_path / "escape", random_state(0))
    index = tmp_path / "escape" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../../secret.safetensors"}}))
    write_shards(tmp_path / "broken", random_state(0))
    (tmp_path / "broken" / "model.safetensors.index.json").write_text("[]")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    save_file({}, tmp_path / "none.safetensors")
    for source, message in {
        "empty": "holds no model.safetensors",
        "text.txt": "no checkpoint this tool reads",
        "lost": "is missing",
        "escape": "no file beside it",
        "broken": "not a map of tensors",
        "list.pt": "holds no state dict",
        "none.safetensors": "holds no tensors",
        "nowhere.safetensors": "does not exist",
        "no/such/folder": "does not exist",
    }.items():
        with pytest.raises(InputError, match=message):
            open_checkpoint(tmp_path / source, home=tmp_path)


def test_a_hub_id_is_found_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own cache layout, offline: what a download leaves behind."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    write_checkpoint(snapshot / "model.safetensors", random_state(0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name", tmp_path).resolve() == snapshot.resolve()
    with pytest.raises(InputError, match="could not be fetched"):
        locate("owner/other", tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_streaming_writer_makes_what_safetensors_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.arange(6).reshape(2, 3).to(dtype), "scalar": torch.ones(()).to(dtype), "none": torch.ones(0, 2)}
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    write_safetensors(tmp_path / "w.safetensors", infos, state.__getitem__, metadata={"x": "y"})
    with safe_open(tmp_path / "w.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt", "x": "y"}
        for name, tensor in state.items():
            assert torch.equal(handle.get_tensor(name), tensor)
            assert handle.get_tensor(name).dtype == tensor.dtype
