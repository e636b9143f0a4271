"""Every ready config runs on folders in the hub's own format: pico networks with random weights, a handful of rows.

A hub id that exists as a path is that path, so the configs are used as they are, but for their number of samples and
GPUs. What is measured is compared with a plain loop through the library that the checkpoints belong to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mergecore.architectures.hub_transformers import quiet_transformers
from mergecore.config import StudyConfig
from mergecore.config_file import load_config
from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators.prompts import prompt_table
from mergecore.pareto_moe.routed_study import route, train_routers
from mergecore.preflight import check
from mergecore.study import prepare
from tests.mergecore.evaluators.pico_clip import transformers_clips
from tests.mergecore.evaluators.pico_texts import WORDS, network, write_tokenizer

CONFIGS = Path(__file__).parent.parent / "deployments" / "configs"
SMALL = ["search.samples=6", "execution.gpus_per_worker=0", "execution.precision=float32"]
CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 8},
    "do_center_crop": True,
    "crop_size": {"height": 8, "width": 8},
    "do_normalize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def prepared(name: str, home: Path, *changes: str) -> tuple[StudyConfig, Any]:
    """`check` must pass, and the study is made."""
    config = load_config(CONFIGS / f"{name}.yaml", [*SMALL, *changes])
    found = check(config, home)
    assert found.models == len(config.models)
    assert all(found.examples.values())
    return config, prepare(config, home)


def pictures(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)) for _ in range(count)]


def image_repository(path: str, splits: dict[str, int], labels: list[str], *, folder: str = "data") -> None:
    """A data set as the hub has it: parquet files by split, features with class names."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=labels)})
    Path(path, folder).mkdir(parents=True)
    for seed, (split, count) in enumerate(splits.items()):
        rows = {"image": pictures(count, seed), "label": [n % len(labels) for n in range(count)]}
        Dataset.from_dict(rows, features=features).to_parquet(
            str(Path(path, folder, f"{split}-00000-of-00001.parquet"))
        )


def write_card(path: str, files: dict[str, dict[str, str]]) -> None:
    """The README of a data set with configurations: configuration to split to files."""
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": place} for split, place in splits.items()]}
        for name, splits in files.items()
    ]
    Path(path, "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def with_vision_tower(base: str, tower: str) -> Any:
    """The base's CLIP with a fine-tuned vision tower in its place, as its model card says to use it."""
    from transformers import CLIPModel, CLIPVisionModel

    with quiet_transformers():
        clip = CLIPModel.from_pretrained(base).eval()
        state = CLIPVisionModel.from_pretrained(tower).state_dict()
    clip.vision_model.load_state_dict({name.removeprefix("vision_model."): t for name, t in state.items()})
    return clip


def clip_repositories(config: StudyConfig, made: Path) -> Path:
    """What a config of CLIPs names, as the hub has it; returns the folder that the base was made in."""
    from transformers import CLIPVisionModel

    base, *_ = transformers_clips(made, positions=77)
    shutil.copytree(base, config.base)
    Path(config.base, "preprocessor_config.json").write_text(json.dumps(CLIP_PROCESSOR))
    for seed, model in enumerate(config.models):
        with quiet_transformers():
            tower = CLIPVisionModel.from_pretrained(base)  # published are vision towers, and nothing beside the weights
            generator = torch.Generator().manual_seed(seed)
            for parameter in tower.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
            tower.save_pretrained(model.source)
    for task in config.tasks:
        assert task.dataset is not None
        names = list(prompt_table(str(task.args["class_names"])).class_names)
        folder = task.dataset.config or "data"
        image_repository(task.dataset.path, {"train": 4, "test": 24}, names, folder=folder)
        if task.dataset.config:
            write_card(task.dataset.path, {folder: {split: f"{folder}/{split}-*" for split in ("train", "test")}})
    return Path(base)


@pytest.mark.parametrize("name", ["clip-vit-b32-eight-tasks", "clip-vit-l14-eight-tasks"])
def test_clip_on_eight_tasks(name: str, tmp_path: Path, home: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPTokenizer

    config = load_config(CONFIGS / f"{name}.yaml")
    base = str(clip_repositories(config, tmp_path / "made"))
    config, study = prepared(name, home)
    index = [task.name for task in config.tasks].index("eurosat")
    found = CandidateEvaluator(study).evaluate(np.eye(8)[index], [index])[0]
    assert not found.reason

    table, normalised = prompt_table("eurosat"), torch.nn.functional.normalize
    clip = with_vision_tower(base, config.models[index].source)
    tokenizer = CLIPTokenizer.from_pretrained(base)
    processor = CLIPImageProcessor(**{k: v for k, v in CLIP_PROCESSOR.items() if k != "image_processor_type"})
    text = []
    right = 0
    with torch.no_grad():
        for label in table.class_names:
            prompts = [template.replace("{}", label) for template in table.templates]
            tokens = tokenizer(prompts, return_tensors="pt", padding=True, truncation=True, max_length=77)
            features = clip.text_projection(clip.text_model(**tokens).pooler_output)
            text.append(normalised(normalised(features, dim=-1).mean(0), dim=-1))
        for number, picture in enumerate(pictures(24, 1)):
            pixels = processor(picture, return_tensors="pt").pixel_values
            image = normalised(clip.visual_projection(clip.vision_model(pixels).pooler_output), dim=-1)
            right += int((image @ torch.stack(text).T).argmax()) == number % len(table.class_names)
    assert found.metrics["accuracy"] == right / 24


def test_routers_of_clip(tmp_path: Path, home: Path) -> None:
    """Two steps of training; the unloaded network is measured like any other, on text features made once."""
    name = "clip-vit-b32-pwe-moe"
    clip_repositories(load_config(CONFIGS / f"{name}.yaml"), tmp_path / "made")
    config, study = prepared(name, home, "search.steps=2", "search.batch_size=4")
    assert [item.examples for item in study.measured] == [24, 24, 24, 4, 4, 4]
    routed = route(study, config.search)
    assert all(module.startswith("vision_model.encoder.layers.") for module in routed.plan.modules)
    training, file = train_routers(routed, config.search)
    assert training.done == 2
    for outcome in CandidateEvaluator(study.routed(file)).evaluate([0.2, 0.3, 0.5], range(3)):
        assert not outcome.reason


def test_the_xray_pair(tmp_path: Path, home: Path) -> None:
    config = load_config(CONFIGS / "medical-xray-pair.yaml")
    base, *models = transformers_clips(tmp_path / "made")
    for place, name in zip((base, *models), (config.base, *(m.source for m in config.models)), strict=True):
        shutil.copytree(place, name)
        Path(name, "preprocessor_config.json").write_text(json.dumps(CLIP_PROCESSOR))
    for task, table in zip(config.tasks, ("chest_xray_1", "chest_xray_2"), strict=True):
        for split in ("train", "validation", "test"):
            for finding in prompt_table(table).class_names:
                folder = Path(task.dataset.path, split, finding)
                folder.mkdir(parents=True)
                for number, picture in enumerate(pictures(2, len(finding))):
                    picture.convert("L").save(folder / f"{number}.png")
    config, study = prepared("medical-xray-pair", home)
    for outcome in CandidateEvaluator(study).evaluate([0.5, 0.5], range(4)):
        assert not outcome.reason
        assert 0 <= outcome.metrics["balanced_accuracy"] <= 1
    assert [item.examples for item in study.measured] == [8, 6, 8, 6]


def test_resnet_on_three_tasks(tmp_path: Path, home: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = load_config(CONFIGS / "resnet18-three-tasks.yaml")
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    for seed, (place, classes) in enumerate(
        [(config.base, 11), *((m.source, 3 + n) for n, m in enumerate(config.models))]
    ):
        torch.manual_seed(seed)
        with quiet_transformers():
            ResNetForImageClassification(ResNetConfig(**shape, num_labels=classes)).save_pretrained(place)
        processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}, "crop_pct": 0.875}
        Path(place, "preprocessor_config.json").write_text(json.dumps(processor))
    for number, task in enumerate(config.tasks):
        image_repository(task.dataset.path, {"train": 150, "test": 20}, [f"c{n}" for n in range(3 + number)])
    config, study = prepared("resnet18-three-tasks", home)
    assert set(study.heads) == {"cifar10", "flowers102", "gtsrb", "base"}
    evaluator = CandidateEvaluator(study)
    first, again = (evaluator.evaluate([0.3, 0.4, 0.2], range(3)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert not one.reason
        assert one.metrics == two.metrics
        assert one.metrics["cross_entropy"] > 0


def test_gpt2_on_glue(tmp_path: Path, home: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = load_config(CONFIGS / "gpt2-glue-seven.yaml")
    network("gpt2-lm").save_pretrained(config.base)
    state = load_file(Path(config.base, "model.safetensors"))
    bare = {name.removeprefix("transformer."): t for name, t in state.items() if name != "lm_head.weight"}
    save_file(bare, Path(config.base, "model.safetensors"), metadata={"format": "pt"})
    write_tokenizer(Path(config.base), pad=False)
    columns = {"cola": ("sentence",), "sst2": ("sentence",), "mnli": ("premise", "hypothesis")}
    columns |= {"mrpc": ("sentence1", "sentence2"), "rte": ("sentence1", "sentence2")}
    columns |= {"qnli": ("question", "sentence"), "qqp": ("question1", "question2")}
    rng = np.random.default_rng(0)
    files: dict[str, dict[str, str]] = {}
    for seed, model in enumerate(config.models):
        classes = 3 if model.name == "mnli" else 2
        classifier = network("gpt2", num_labels=classes)
        generator = torch.Generator().manual_seed(seed)
        for parameter in classifier.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        with quiet_transformers():
            classifier.save_pretrained(model.source)
        write_tokenizer(Path(model.source), pad=False)
        texts = {name: Value("string") for name in columns[model.name]}
        labels = ClassLabel(names=[f"n{n}" for n in range(classes)])
        rows: dict[str, Any] = {name: [" ".join(rng.choice(WORDS, 6)) for _ in range(12)] for name in texts}
        rows |= {"label": [n % classes for n in range(12)], "idx": list(range(12))}
        if model.name == "mnli":
            kept = rows
        table = Dataset.from_dict(rows, features=Features({**texts, "label": labels, "idx": Value("int32")}))
        data = config.tasks[seed].dataset
        Path(data.path, model.name).mkdir(parents=True)
        table.to_parquet(str(Path(data.path, model.name, f"{data.split}-00000-of-00001.parquet")))
        files[model.name] = {data.split: f"{model.name}/{data.split}-*"}
    write_card("nyu-mll/glue", files)
    config, study = prepared("gpt2-glue-seven", home)
    index = [task.name for task in config.tasks].index("mnli")
    found = CandidateEvaluator(study).evaluate(np.eye(7)[index], range(7))
    assert not any(outcome.reason for outcome in found)
    assert -1 <= found[0].metrics["matthews_correlation"] <= 1
    with quiet_transformers(), torch.no_grad():
        classifier = AutoModelForSequenceClassification.from_pretrained("tanganke/gpt2_mnli").eval()
        tokenizer = AutoTokenizer.from_pretrained("tanganke/gpt2_mnli")
        right = [
            int(classifier(**tokenizer(a, b, return_tensors="pt")).logits.argmax()) == label
            for a, b, label in zip(kept["premise"], kept["hypothesis"], kept["label"], strict=True)
        ]
    assert found[index].metrics["accuracy"] == np.mean(right)


def test_llama_in_four_languages(tmp_path: Path, home: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    config = load_config(CONFIGS / "llama3-8b-languages.yaml")
    for seed, place in enumerate((config.base, *(model.source for model in config.models))):
        module = network("llama-lm")
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            parameter.data += 0.02 * seed * torch.randn(parameter.shape, generator=generator)
        with quiet_transformers():
            module.to(torch.bfloat16).save_pretrained(place, max_shard_size="8KB")
        assert Path(place, "model.safetensors.index.json").is_file()
        write_tokenizer(Path(place))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 7)) for _ in range(6)]
    for task in config.tasks:
        folder = Path(task.dataset.path, "test")
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["Question,A,Answer", *(f"{text},x,A" for text in texts)]
        (folder / f"mmlu_{task.dataset.config}.csv").write_text("\n".join(lines) + "\n")
    languages = [str(task.dataset.config) for task in config.tasks]
    write_card("openai/MMMLU", {language: {"test": f"test/mmlu_{language}.csv"} for language in languages})
    pico = [f"tasks.{number}.args.window=32" for number in range(4)]  # the pico network reads no more
    config, study = prepared("llama3-8b-languages", home, *pico)
    found = CandidateEvaluator(study).evaluate([0.0, 1.0, 0.0, 0.0], range(4))
    with quiet_transformers(), torch.no_grad():
        plain = LlamaForCausalLM.from_pretrained(config.models[1].source, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(config.base)
        ids = [i for text in texts for i in (*tokenizer(text).input_ids, tokenizer.eos_token_id)][:-1]
        losses = []
        window = plain.config.max_position_embeddings
        for start in range(0, len(ids) - 1, window):
            part = torch.tensor([ids[start : start + window + 1]])
            logits = plain(part[:, :-1]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none"))
    for outcome in found:
        assert not outcome.reason
        # the differences are stored in bfloat16
        assert outcome.metrics["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=5e-3)


def test_a_family_of_adapters(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    import peft

    config = load_config(CONFIGS / "lora-family.yaml")
    network("llama-lm").save_pretrained(config.base)
    write_tokenizer(Path(config.base))
    for seed, model in enumerate(config.models):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            options = peft.LoraConfig(r=2 + seed, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            peft.get_peft_model(network("llama-lm"), options).save_pretrained(model.source)
    # the harness's own tasks fetch GLUE from the hub; here each is a task of the same name in a folder
    rng = np.random.default_rng(0)
    rows = "".join(json.dumps({"text": " ".join(rng.choice(WORDS, 4)), "label": n % 2}) + "\n" for n in range(8))
    Path("rows.jsonl").write_text(rows)
    Path("mine").mkdir()
    changes = []
    for number, task in enumerate(config.tasks):
        lines = [
            f"task: my_{task.name}",
            "dataset_path: json",
            f"dataset_kwargs: {{data_files: {{test: {Path('rows.jsonl').resolve()}}}}}",
            "test_split: test",
            "output_type: multiple_choice",
            'doc_to_text: "{{text}}"',
            "doc_to_choice: [w1, w2]",
            "doc_to_target: label",
            f"metric_list: [{{metric: {task.metric}, higher_is_better: true}}]",
        ]
        Path("mine", f"{task.name}.yaml").write_text("\n".join(lines) + "\n")
        changes += [f"tasks.{number}.args.tasks=my_{task.name}", f"tasks.{number}.args.include_path=mine"]
    small = load_config(CONFIGS / "lora-family.yaml", [*SMALL, *changes])
    study = prepare(small, home)
    found = CandidateEvaluator(study).evaluate([0.5, 0.5, 0.5, 0.5], range(4))
    for outcome, task in zip(found, small.tasks, strict=True):
        assert not outcome.reason
        low, high = task.bounds
        assert low is not None
        assert high is not None
        assert low <= outcome.metrics[task.metric] <= high
    full = 4 * study_bytes(study)
    assert sum(file.stat().st_size for file in study.matrix_folder.iterdir() if file.suffix == ".bin") < full


def study_bytes(study: Any) -> int:
    """Of the base in float32."""
    from mergecore.checkpoints.checkpoint import open_checkpoint

    tensors = open_checkpoint(study.config.base, home=study.home).tensors
    return 4 * sum(int(np.prod(info.shape)) for info in tensors.values())


TESTED: dict[str, Callable[..., None]] = {
    "clip-vit-b32-eight-tasks": test_clip_on_eight_tasks,
    "clip-vit-l14-eight-tasks": test_clip_on_eight_tasks,
    "clip-vit-b32-pwe-moe": test_routers_of_clip,
    "medical-xray-pair": test_the_xray_pair,
    "resnet18-three-tasks": test_resnet_on_three_tasks,
    "gpt2-glue-seven": test_gpt2_on_glue,
    "llama3-8b-languages": test_llama_in_four_languages,
    "lora-family": test_a_family_of_adapters,
}


def test_every_config_is_tested() -> None:
    """The digits are the quickstart's, which has tests of its own."""
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {*TESTED, "digits", "digits-pwe-moe"}
