"""`convert` gives what ``state_dict()`` gave, from every format of torch.save, and names what it cannot read."""

from __future__ import annotations

import pickle
import random
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mergecore.checkpoints import convert as converting
from mergecore.checkpoints import inert_pickle
from mergecore.checkpoints.alignment import align
from mergecore.checkpoints.checkpoint import open_checkpoint
from mergecore.checkpoints.convert import convert
from mergecore.errors import InputError
from tests.mergecore.checkpoints.test_convert_payloads import Reduced
from tests.mergecore.evaluators.pico_clip import open_clips


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


class ImageEncoder(torch.nn.Module):
    """As published with task arithmetic: a CLIP without its text transformer, and what prepares its images."""

    def __init__(self, clip: torch.nn.Module) -> None:
        super().__init__()
        from torchvision.transforms import Compose, Resize

        self.model = clip
        del self.model.transformer
        self.train_preprocess = Compose([Resize(8)])
        self.cache_dir = None


def test_a_published_image_encoder_joins_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    base, tuned, _ = open_clips(tmp_path)
    torch.save(ImageEncoder(open_clip.create_model(f"local-dir:{tuned}")), tmp_path / "finetuned.pt")
    monkeypatch.delattr(sys.modules[__name__], "ImageEncoder")
    with pytest.raises(InputError, match=r"mergecore convert \S+/finetuned\.pt finetuned\.safetensors"):
        open_checkpoint(tmp_path / "finetuned.pt", home=tmp_path)
    convert(tmp_path / "finetuned.pt", tmp_path / "finetuned.safetensors")
    opened = [open_checkpoint(path, home=tmp_path) for path in (base, tmp_path / "finetuned.safetensors")]
    found = align(opened[0], {"tuned": opened[1]}).models["tuned"]
    expected = load_file(Path(tuned) / "open_clip_model.safetensors")
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.read(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_state_dicts(tmp_path: Path, zipped: bool, key: str | None) -> None:
    state = {"a": torch.randn(3, 2), "b.c": torch.arange(4), "d": torch.randn(2).half(), "e": torch.empty(0, 3)}
    content = OrderedDict(state) if key is None else {key: state, "epoch": 3, "best": 0.5}
    torch.save(content, tmp_path / "s.pth", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "s.pth", tmp_path / "s.safetensors")
    same(load_file(tmp_path / "s.safetensors"), state)


@pytest.mark.parametrize("protocol", range(6))
def test_modules_pickled_without_torch(tmp_path: Path, protocol: int) -> None:
    module = Vanished()
    with (tmp_path / "m.pkl").open("wb") as sink:
        pickle.dump({"model": module, "epoch": 1}, sink, protocol=protocol)
    convert(tmp_path / "m.pkl", tmp_path / "m.safetensors")
    same(load_file(tmp_path / "m.safetensors"), dict(module.state_dict()))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU()).eval()
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    with pytest.raises(InputError, match="mergecore convert"):
        open_checkpoint(tmp_path / "m.pt", home=tmp_path)
    convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    same(load_file(tmp_path / "m.safetensors"), dict(module.state_dict()))


def test_a_payload_among_a_modules_attributes_is_named_and_left(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    module.transform = Reduced(f"open({str(tmp_path / 'marker')!r}, 'w')")
    for zipped in (True, False):
        torch.save(module, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        found = convert(tmp_path / "m.pt", tmp_path / f"{zipped}.safetensors")
        same(load_file(found.out), dict(module.state_dict()))
        assert "__builtin__.exec" in found.classes
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("value", "stored_by"),
    [
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.ones(2).to(torch.float8_e5m2), "torch._utils._rebuild_tensor_v3"),
        (torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    ],
)
def test_no_tensor_is_left_out_silently(tmp_path: Path, value: torch.Tensor, stored_by: str) -> None:
    module = torch.nn.Linear(2, 3)
    module.register_buffer("odd", value)
    torch.save(module, tmp_path / "m.pt")
    with pytest.raises(InputError, match=rf"'odd'.* {re.escape(stored_by)}, which"):
        convert(tmp_path / "m.pt", tmp_path / "m.safetensors")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_module_is_left_out_silently(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 3)))
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2), graph), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"'1' of .* was stored by torch\.fx\.graph_module\.reduce_graph_module"):
        convert(tmp_path / "m.pt", tmp_path / "m.safetensors")


@pytest.mark.data
def test_a_published_state_dict(tmp_path: Path, real_data: Path) -> None:
    """A real file of the stream format, of torch 1.0."""
    folder = real_data / "weights" / "cifar10_resnet20"
    convert(next(folder.glob("*.th")), tmp_path / "m.safetensors")
    found, expected = load_file(tmp_path / "m.safetensors"), np.load(folder / "cifar10_resnet20.npz")
    same(found, {f"module.{name}": torch.from_numpy(expected[name]) for name in expected.files})


def test_damaged_and_crafted_files(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(50, 50)}, tmp_path / "good.pt")
    torch.save({"w": torch.randn(50, 50)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
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
    for name in (*tensors, *broken):
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


def test_whatever_is_damaged_is_named(tmp_path: Path) -> None:
    """Bytes changed, removed or repeated at random: a file is converted or refused, and nothing else happens."""
    module = Vanished()
    torch.save(module, tmp_path / "zip.pt")
    torch.save(module, tmp_path / "stream.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(module))
    draw = random.Random(0)
    refused = []
    for name in ("zip", "stream", "plain"):
        content = (tmp_path / f"{name}.pt").read_bytes()
        for attempt in range(100):
            place, length = draw.randrange(len(content)), draw.choice([1, 1, 8, 100])
            middle = draw.choice([draw.randbytes(length), b"", 2 * content[place : place + length]])
            (tmp_path / "damaged.pt").write_bytes(content[:place] + middle + content[place + length :])
            try:
                convert(tmp_path / "damaged.pt", tmp_path / f"{name}{attempt}.safetensors")
            except InputError as error:
                refused.append(str(error))
    assert 100 < len(refused) < 300
    assert not any("\n" in message for message in refused)


def crafted(file: Path, root: object) -> Path:
    """Modules as plain dicts of what they hold, in a file of modules."""

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            pass

    parts: dict[int, Part] = {}

    def module(content: dict) -> Part:
        if id(content) not in parts:
            part = parts[id(content)] = Part()
            inner = {name: module(value) for name, value in content.items() if isinstance(value, dict)}
            own = {name: value for name, value in content.items() if not isinstance(value, dict)}
            part.__dict__ |= {"_parameters": own, "_buffers": {}, "_modules": inner}
        return parts[id(content)]

    Part.__qualname__ = "Part"
    sys.modules[__name__].Part = Part  # type: ignore[attr-defined]
    torch.save(module(root), file)
    return file


def test_files_that_would_exhaust_their_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "MAX_ENTRIES", 10_000)
    monkeypatch.setattr(converting, "MAX_TENSORS", 1000)
    doubled: dict = {}
    for _ in range(60):  # 2^60 places of one module
        doubled = {"a": doubled, "b": doubled}
    many: dict = {"w": torch.ones(1)}
    for _ in range(12):
        many = {"a": many, "b": many}
    deep: dict = {}
    for _ in range(30):
        deep = {"a-rather-long-name": deep}
    itself: dict = {"w": torch.ones(1)}
    itself["inside"] = itself
    spread = {f"w{n}": torch.ones(1).expand(1 << 20) for n in range(20)}
    cases = {
        "entries": doubled,
        "1,000 tensors": many,
        "nested too deeply": deep,
        "contains itself": itself,
        "no name for a tensor": {"new\nline": torch.ones(1)},
        "times the file's size": spread,
    }
    for number, (message, root) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message):
            convert(crafted(tmp_path / f"{number}.pt", root), tmp_path / "o.safetensors")
    monkeypatch.setattr(inert_pickle, "MAX_STEPS", 1000)
    (tmp_path / "steps.pt").write_bytes(b"N0" * 1000 + b"N.")
    with pytest.raises(InputError, match="1,000 steps"):
        convert(tmp_path / "steps.pt", tmp_path / "o.safetensors")
