"""`check` on broken studies of real families: each fault is named in one sentence, before anything is evaluated."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from flows import cli
from tests.conftest import rewrite
from tests.mergecore.evaluators.pico_clip import transformers_clips
from tests.mergecore.evaluators.pico_texts import WORDS, family, network, write_rows, write_tokenizer

Config = dict[str, Any]
Fault = Callable[[Config, Path], None]


def study(base: str, models: list[str], tasks: list[Config], **changes: Any) -> Config:
    named = [{"name": name, "source": source} for name, source in zip(("first", "second"), models, strict=True)]
    return {"base": base, "models": named, "tasks": tasks, "search": {"method": "map", "samples": 8}, **changes}


def clip_study(folder: Path) -> Config:
    """Two CLIPs on a folder of pictures of three classes."""
    base, *models = transformers_clips(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 8}}
    processor |= {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}
    for place in (base, *models):
        (Path(place) / "preprocessor_config.json").write_text(json.dumps(processor))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog", "owl"):
            (folder / "pictures" / split / label).mkdir(parents=True)
            for n in range(2):
                pixels = rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / split / label / f"{n}.png")
    task = {"name": "pets", "evaluator": "clip_zero_shot"}
    data = {"path": str(folder / "pictures"), "split": "test"}
    return study(base, models, [{**task, "dataset": data}])


def text_study(folder: Path) -> Config:
    """Two classifiers of one shape over a base of the same shape, on rows in a file."""
    places = family(folder, "bert", tokenizer={"pairs": True}, num_labels=3)
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(rng.choice(WORDS, 5)), "label": n % 3, "split": "test"} for n in range(9)]
    write_rows(folder / "rows.jsonl", rows)
    task = {"name": "topic", "evaluator": "sequence_classification", "dataset": {"path": str(folder / "rows.jsonl")}}
    return study(places["base"], [places["first"], places["second"]], [task])


def adapter_study(folder: Path) -> Config:
    """Two LoRA adapters over a Llama, judged by a function."""
    import peft

    base = folder / "llama"
    network("llama-lm").save_pretrained(base)
    write_tokenizer(base)
    for seed, name in enumerate(("a", "b")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            options = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
            peft.get_peft_model(network("llama-lm"), options).save_pretrained(folder / name)
    (folder / "judged_by.py").write_text("def score(candidate):\n    return 0.5\n")
    task = {"name": "score", "evaluator": "python", "metric": "score", "direction": "maximize"}
    return study(str(base), [str(folder / "a"), str(folder / "b")], [{**task, "args": {"function": "judged_by:score"}}])


def set_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def data(config: Config, **changes: Any) -> None:
    config["tasks"][0]["dataset"].update(changes)


def renumber(config: Config, folder: Path) -> None:
    file = Path(config["models"][1]["source"]) / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    file.write_text(json.dumps(content))


def longer_vocabulary(state: dict[str, torch.Tensor]) -> None:
    name = next(name for name in state if name.endswith("word_embeddings.weight"))
    state[name] = torch.cat([state[name], torch.zeros(2, state[name].shape[1])])


def one_factor(state: dict[str, torch.Tensor]) -> None:
    del state[next(name for name in state if "lora_B" in name)]


def lost_shard(config: Config, folder: Path) -> None:
    place = Path(config["models"][0]["source"])
    names = list(load_file(place / "model.safetensors"))
    (place / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def spoiled_picture(config: Config, folder: Path) -> None:
    (folder / "pictures" / "test" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n but not for long")


def whole_module(config: Config, folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    config["models"][0]["source"] = str(folder / "module.pt")


def other_base(config: Config, folder: Path) -> None:
    def wider(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            state[name] = torch.zeros([size + 8 if size == 16 else size for size in state[name].shape])

    rewrite(folder / "llama", wider)


def broken_parquet(config: Config, folder: Path) -> None:
    (folder / "rows.parquet").write_bytes(b"PAR1 and nothing else")
    data(config, path=str(folder / "rows.parquet"))


def pointer(config: Config, folder: Path) -> None:
    file = Path(config["models"][0]["source"]) / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:6ae8\nsize 548105171\n")


def unprocessed(config: Config, folder: Path) -> None:
    for place in (config["base"], *(model["source"] for model in config["models"])):
        (Path(place) / "preprocessor_config.json").unlink()


FAULTS: dict[str, tuple[Callable[[Path], Config], Fault, str]] = {
    "token numbers": (text_study, renumber, "The tokenizers differ: 'w"),
    "vocabulary": (
        text_study,
        lambda c, f: rewrite(c["models"][0]["source"], longer_vocabulary),
        "word_embeddings.weight' has the shape [42, 16] in the model 'first', but [40, 16] in the base",
    ),
    "label past the head": (
        text_study,
        lambda c, f: write_rows(f / "rows.jsonl", [{"text": "w1", "label": n, "split": "test"} for n in range(5)]),
        "'topic'",
    ),
    "column": (text_study, lambda c, f: data(c, columns={"text": "sentense"}), "'sentense'"),
    "no column": (
        text_study,
        lambda c, f: write_rows(f / "rows.jsonl", [{"words": "w1", "label": 0, "split": "test"}]),
        "words",
    ),
    "split": (text_study, lambda c, f: data(c, split="validation"), "'validation'"),
    "test split": (text_study, lambda c, f: data(c, test_split="tets"), "'tets'"),
    "test split once more": (text_study, lambda c, f: data(c, test_split="test"), "'test' is the split that"),
    "no rows": (text_study, lambda c, f: write_rows(f / "rows.jsonl", []), "a split of it is empty"),
    "pointer": (text_study, pointer, "a pointer of Git LFS"),
    "config of another network": (
        text_study,
        lambda c, f: set_json(Path(c["base"]) / "config.json", num_attention_heads=3),
        "'topic' cannot be measured: The hidden size (16) is not a multiple",
    ),
    "no preprocessing": (clip_study, unprocessed, "'pets' cannot be measured: Input image size (10*12)"),
    "unlabelled": (
        text_study,
        lambda c, f: write_rows(f / "rows.jsonl", [{"text": "w1", "label": -1, "split": "test"}] * 3),
        "label",
    ),
    "parquet": (text_study, broken_parquet, "rows.parquet"),
    "no tokenizer": (
        text_study,
        lambda c, f: [(Path(c["base"]) / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer",
    ),
    "shard": (text_study, lost_shard, "The shard 'model-00001-of-00001.safetensors'"),
    "head of nobody": (text_study, lambda c, f: c["tasks"][0].update(head="third"), "no model is called 'third'"),
    "code of the repository": (
        text_study,
        lambda c, f: set_json(Path(c["base"]) / "config.json", architectures=["MyBertForAll"]),
        "'MyBertForAll'",
    ),
    "architecture": (text_study, lambda c, f: c.update(architecture="timm:resnet19"), "timm has no model 'resnet19'"),
    "option of a transform": (
        text_study,
        lambda c, f: c.update(merge={"transform": "ties", "options": {"density": 0.2}}),
        "merge.options.density",
    ),
    "GPU": (text_study, lambda c, f: c.update(execution={"gpus_per_worker": 1}), "torch finds no GPU"),
    "pickled module": (text_study, whole_module, "pickle of more than tensors"),
    "hub id": (
        text_study,
        lambda c, f: c["models"][0].update(source="nobody-at-all/no-model-of-this-name"),
        "'nobody-at-all/no-model-of-this-name' is no local path and could not be fetched",
    ),
    "template": (clip_study, lambda c, f: c["tasks"][0].update(args={"templates": ["a photo"]}), "a photo"),
    "class names": (clip_study, lambda c, f: c["tasks"][0].update(args={"class_names": ["cat", "dog"]}), "class names"),
    "picture": (clip_study, spoiled_picture, "dog/1.png"),
    "texts for pictures": (text_study, lambda c, f: c["tasks"][0].update(evaluator="clip_zero_shot"), "the images"),
    "tag of open_clip": (clip_study, lambda c, f: c.update(base="open_clip:ViT-B-32/opanai"), "Did you mean 'openai'?"),
    "one factor": (
        adapter_study,
        lambda c, f: rewrite(f / "a", one_factor, "adapter_model"),
        "has only one of the two factors",
    ),
    "adapter of another base": (adapter_study, other_base, "that tensor of the base has the shape"),
    "DoRA": (adapter_study, lambda c, f: set_json(f / "a" / "adapter_config.json", use_dora=True), "DoRA"),
    "adapter as base": (adapter_study, lambda c, f: c.update(base=c["models"][0]["source"]), "is an adapter"),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three studies, made once."""
    folder = tmp_path_factory.mktemp("intact")
    for make in (clip_study, text_study, adapter_study):
        place = folder / make.__name__
        place.mkdir()
        (place / "study.yaml").write_text(yaml.safe_dump(make(place)))
    return folder


def copied(intact: Path, make: Callable[[Path], Config], folder: Path) -> Config:
    source = intact / make.__name__
    shutil.copytree(source, folder)
    config: Config = yaml.safe_load((folder / "study.yaml").read_text().replace(str(source), str(folder)))
    return config


def checked(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "judged_by", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["mergecore", "check", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("make", [clip_study, text_study, adapter_study], ids=lambda make: make.__name__)
def test_the_intact_study_passes(make, intact, tmp_path, home, monkeypatch, capsys) -> None:
    code, out, err = checked(copied(intact, make, tmp_path / "s"), tmp_path / "s", monkeypatch, capsys)
    assert code == 0, err
    assert "ready to run" in out


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault, intact, tmp_path, home, monkeypatch, capsys) -> None:
    make, change, message = FAULTS[fault]
    folder = tmp_path / "s"
    config = copied(intact, make, folder)
    change(config, folder)
    code, out, err = checked(config, folder, monkeypatch, capsys)
    assert code == 2, out + err
    assert message in err
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1, err
    assert not (home / "ledger.sqlite").exists()
