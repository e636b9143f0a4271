"""The harness on the merged model in memory finds what the harness by itself finds on the exported checkpoint."""

from __future__ import annotations

import random
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergecore.config import TaskConfig
from mergecore.config_file import parse_config
from mergecore.errors import InputError
from mergecore.evaluation import CandidateEvaluator
from mergecore.evaluators.base import Candidate, Context, Measurement
from mergecore.evaluators.batching import estimating
from mergecore.evaluators.lm_eval import LmEval
from mergecore.export import export_model
from mergecore.study import prepare
from tests.mergecore.evaluators.pico_texts import family, network, texts, write_rows

DEFINITIONS = {
    "choice": """
task: choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "written": """
task: written
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["w9"], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: !function scores.overlap, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(w\\\\d+)"}, {function: take_first}]}
  - {name: all, filter: [{function: take_first}]}
""",
    "rolling": """
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
    "last": """
task: last
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
}
GROUP = """
group: both
task: [choice, last]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""
SCORES = "def overlap(references, predictions, **_):\n    return float(len(predictions[0]) % 3) / 3\n"

pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks over 20 documents."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": text, "choices": [f"w{n % 7} w2", "w3", f"w4 w{n % 5}"], "answer": n % 3}
        for n, text in enumerate(texts(20))
    ]
    data = {split: write_rows(tmp_path / f"{split}.jsonl", part) for split, part in (("dev", rows[:6]), ("test", rows))}
    places = f"dataset_path: json\ndataset_kwargs: {{data_files: {{dev: {data['dev']}, test: {data['test']}}}}}\n"
    for name, definition in DEFINITIONS.items():
        splits = "test_split: test\nfewshot_split: dev\n"
        (folder / f"{name}.yaml").write_text(definition + places + splits)
    (folder / "both.yaml").write_text(GROUP)
    (folder / "scores.py").write_text(SCORES)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a pico Llama."""
    return Path(family(tmp_path, "llama-lm")["base"])


def evaluator(model: Path, home: Path, folder: Path, /, *, metric: str = "acc", **args: Any) -> LmEval:
    args = {"tasks": "choice", "include_path": str(folder), **args}
    task = {"name": "t", "evaluator": "lm_eval", "metric": metric, "direction": "maximize", "args": args}
    return LmEval(TaskConfig.model_validate(task), None, Context(home, base="the base", base_folder=model))


def measure(made: LmEval, module: torch.nn.Module, precision: str = "float32") -> Measurement:
    return made.evaluate(Candidate(np.zeros(2), {}, lambda: module, precision=precision))


def by_the_harness(model: Path, tasks: Path, names: list[str], **args: Any) -> dict[str, tuple[float, Any]]:
    """Value and error of every metric, as the harness names them."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model)},
        device="cpu",
        tasks=names,
        task_manager=manager,
        bootstrap_iters=50,
        **args,
    )
    assert found is not None
    return {
        f"{task}/{key}": (value, values[key.replace(",", "_stderr,")])
        for task, values in found["results"].items()
        for key, value in values.items()
        if "," in key and "_stderr" not in key
    }


@pytest.mark.parametrize(("kind", "shots"), [("llama-lm", 2), ("gpt2-lm", 0)])
def test_equals_the_harness_on_the_exported_checkpoint(
    tmp_path: Path, home: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shots: int
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    places = family(tmp_path, kind)
    (Path(places["base"]) / "generation_config.json").write_text('{"repetition_penalty": 5.0, "eos_token_id": 2}')
    args = {"num_fewshot": shots, "limit": 0.7, "bootstrap_iters": 50}
    task = {
        "name": "t",
        "evaluator": "lm_eval",
        "metric": "choice/acc",
        "direction": "maximize",
        "args": {"tasks": list(DEFINITIONS), "include_path": str(tasks), **args},
    }
    models = [{"name": name, "source": places[name]} for name in ("first", "second")]
    study = prepare(parse_config({"base": places["base"], "models": models, "tasks": [task]}), home)
    (found,) = CandidateEvaluator(study).evaluate([0.4, 0.2], [0])
    assert not found.reason
    export_model(study, np.array([0.4, 0.2]), tmp_path / "out", measured={})
    expected = by_the_harness(tmp_path / "out", tasks, list(DEFINITIONS), num_fewshot=shots, limit=0.7)
    assert found.examples == 4 * 14
    assert {name.partition(",")[0] for name in expected} == {name.partition(",")[0] for name in found.metrics}
    for name, (value, error) in expected.items():
        own = name if name.startswith("written") else name.removesuffix(",none")  # which has two filters
        assert found.metrics[own] == pytest.approx(value, rel=1e-5), name
        if error != "N/A":
            assert found.noise[own] == pytest.approx(error, rel=1e-4), name


def test_chat_templates(tmp_path: Path, home: Path, tasks: Path, model: Path) -> None:
    template = "{% for m in messages %}w{{ m['role']|length }} {{ m['content'] }} {% endfor %}w0"
    (model / "chat_template.jinja").write_text(template)
    prompt = {"apply_chat_template": True, "system_instruction": "w8 w8", "fewshot_as_multiturn": False}
    made = evaluator(model, home, tasks, num_fewshot=1, **prompt)
    found = measure(made, network("llama-lm"))
    assert made.key != evaluator(model, home, tasks, num_fewshot=1).key
    network("llama-lm").save_pretrained(model)
    expected = by_the_harness(model, tasks, ["choice"], num_fewshot=1, **prompt)
    assert found.metrics["acc_norm"] == expected["choice/acc_norm,none"][0]


def test_model_arguments_reach_the_harness(home: Path, tasks: Path, model: Path) -> None:
    module = network("llama-lm")
    args = [{}, {"add_bos_token": True}, {"max_length": 4}]
    made = [evaluator(model, home, tasks, tasks="rolling", metric="word_perplexity", model_args=arg) for arg in args]
    values = [measure(one, module).metrics["word_perplexity"] for one in made]
    assert len(set(values)) == len({one.key for one in made}) == 3


def test_a_candidate_costs_no_tokenizer_no_data_and_no_file(
    tmp_path: Path, home: Path, tasks: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = evaluator(model, home, tasks, tasks=["choice", "rolling"], metric="choice/acc", num_fewshot=2)
    before = measure(made, network("llama-lm"))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("asked again")

    monkeypatch.setattr(made._model.lm.tokenizer, "encode", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("lm_eval.api.task.ConfigurableTask.fewshot_context", refuse)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert measure(made, network("llama-lm")).metrics == before.metrics
    other = network("llama-lm")
    torch.nn.init.normal_(other.lm_head.weight, generator=torch.Generator().manual_seed(1))
    assert measure(made, other).metrics["rolling/word_perplexity"] != before.metrics["rolling/word_perplexity"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


def test_names_of_metrics(home: Path, tasks: Path, model: Path) -> None:
    module = network("llama-lm")
    several = measure(evaluator(model, home, tasks, tasks=["choice", "last"], metric="last/acc"), module).metrics
    assert set(several) == {"choice/acc", "choice/acc_norm", "last/acc", "last/perplexity"}
    group = measure(evaluator(model, home, tasks, tasks="both"), module)
    assert group.metrics["acc"] == group.metrics["both/acc"] == (several["choice/acc"] + several["last/acc"]) / 2
    assert set(group.metrics) == {*several, "both/acc", "acc"}
    assert group.examples == 40
    written = evaluator(model, home, tasks, tasks="written", metric="exact_match,first")
    written.check(None)
    assert {"exact_match,first", "written/exact_match,all"} <= set(measure(written, module).metrics)
    for metric in ("both/acc", "acc", "choice/acc_norm"):
        evaluator(model, home, tasks, tasks="both", metric=metric).check(None)


def test_a_definition_by_path(home: Path, tasks: Path, model: Path) -> None:
    module, definition = network("llama-lm"), tasks / "choice.yaml"
    made = evaluator(model, home, tasks, tasks=str(definition), include_path=[])
    assert measure(made, module).metrics == measure(evaluator(model, home, tasks), module).metrics
    definition.write_text(definition.read_text() + "# changed\n")
    assert evaluator(model, home, tasks, tasks=str(definition), include_path=[]).key != made.key


def test_key_is_content(tmp_path: Path, home: Path, tasks: Path, model: Path) -> None:
    def key(folder: Path = tasks, **args: Any) -> str:
        return evaluator(model, home, folder, **args).key

    first = key()
    assert key(batch_size=3) == first
    shutil.copytree(tasks, tmp_path / "elsewhere")
    assert key(tmp_path / "elsewhere") == first
    others = [
        key(num_fewshot=1),
        key(limit=5),
        key(samples={"choice": [0, 3]}),
        key(fewshot_random_seed=5, num_fewshot=1),
    ]
    definition = tasks / "choice.yaml"
    definition.write_text(definition.read_text() + "# changed\n")
    others.append(key())
    data = tmp_path / "test.jsonl"
    data.write_text(data.read_text().replace('"answer": 0', '"answer": 1', 1))
    others.append(key())
    assert len({first, *others}) == 7


def test_sampled_text_repeats_and_leaves_random_numbers_alone(home: Path, tasks: Path, model: Path) -> None:
    module = network("llama-lm")
    sampled = {"do_sample": True, "temperature": 5.0}
    made = [
        evaluator(model, home, tasks, tasks="written", metric="overlap,all", gen_kwargs=sampled, torch_random_seed=seed)
        for seed in (1, 1, 2)
    ]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    values = [measure(one, module).metrics["overlap,all"] for one in made]
    assert (random.random(), np.random.random(), torch.rand(1)) == expected
    assert values[0] == values[1] != values[2]


def test_batches_are_halved_until_they_fit(home: Path, tasks: Path, model: Path) -> None:
    class Small(type(network("llama-lm"))):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            sizes.append(len(input_ids))
            if len(input_ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(input_ids, **kwargs)

    sizes: list[int] = []
    module = network("llama-lm")
    expected = measure(evaluator(model, home, tasks), module).metrics
    module.__class__ = Small
    made = evaluator(model, home, tasks, batch_size=8)
    assert measure(made, module).metrics == expected
    assert sizes[:3] == [8, 4, 2]
    sizes.clear()
    measure(made, module)
    assert max(sizes) == 2


def test_autocast(home: Path, tasks: Path, model: Path) -> None:
    module = network("llama-lm")
    made = evaluator(model, home, tasks, tasks="rolling", metric="word_perplexity")
    exact, rounded = (
        measure(made, module, precision).metrics["bits_per_byte"] for precision in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tasks": "choise"}, "the harness knows no task 'choise'. Did you mean 'choice'"),
        ({"include_path": "nowhere"}, "the folder 'nowhere' of args.include_path does not exist"),
        ({"limit": 3, "samples": {"choice": [1]}}, "limit and samples cannot both be given"),
        ({"model_args": {"pretrained": "x"}}, "args.model_args.pretrained"),
        ({"shots": 3}, "knows no args.shots"),
        ({"apply_chat_template": True}, "prompts of the harness's task 'choice' cannot be made: .*chat.template"),
        ({"num_fewshot": 50}, "prompts of the harness's task 'choice' cannot be made"),
        (
            {"tasks": {"task": "x", "dataset_path": "json", "dataset_kwargs": {"data_files": "no.jsonl"}}},
            "cannot be had",
        ),
        ({"tasks": {"task": "x", "dataset_path": "no/such"}}, "cannot be had: .*no/such.*It comes from the hub"),
        ({"tasks": {"task": "x", "output_type": "guess"}}, "the harness cannot load the task: .*output_type 'guess'"),
    ],
)
def test_faults(home: Path, tasks: Path, model: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluator(model, home, tasks, **args)


def test_other_faults(home: Path, tasks: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"does not measure 'ac'. Did you mean 'acc'"):
        evaluator(model, home, tasks, metric="ac").check(None)
    with pytest.raises(InputError, match=r"does not measure 'ac'. Did you mean 'acc'"):
        measure(evaluator(model, home, tasks, metric="ac"), network("llama-lm"))
    long = evaluator(model, home, tasks, tasks="written", metric="overlap,all", gen_kwargs={"max_gen_toks": 99})
    with pytest.raises(InputError, match=r"cannot run it: .*max tokens to generate \(99\)"):
        measure(long, network("llama-lm"))
    made = evaluator(model, home, tasks)
    dataset = TaskConfig.model_validate({"name": "t", "dataset": {"path": "x"}}).dataset
    with pytest.raises(InputError, match="tasks of the harness name their own data"):
        LmEval(made._task, dataset, made._context)
    network("bert").save_pretrained(model)
    with pytest.raises(InputError, match="'the base' is a BertForSequenceClassification"):
        evaluator(model, home, tasks).check(None)

    def missing(name: str) -> str:
        if name == "lm_eval":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("mergecore.evaluators.harness.version", missing)
    with pytest.raises(InputError, match=r"Install it: pip install 'mergecore\[lm-eval\]'"):
        evaluator(model, home, tasks)


def test_code_of_the_model_is_not_run_unasked(home: Path, tasks: Path, model: Path) -> None:
    definition = tasks / "choice.yaml"
    definition.write_text(definition.read_text() + "unsafe_code: true\n")
    with pytest.raises(InputError, match=r"runs code that the model writes\. Allow it"):
        evaluator(model, home, tasks)
    assert measure(evaluator(model, home, tasks, confirm_run_unsafe_code=True), network("llama-lm")).examples == 20


def test_time_is_estimated_from_a_batch_of_the_longest_request(home: Path, tasks: Path, model: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    class Watched(type(network("llama-lm"))):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            shapes.append(tuple(input_ids.shape))
            return super().forward(input_ids, **kwargs)

    module = network("llama-lm")
    module.__class__ = Watched
    made = evaluator(model, home, tasks, batch_size=8)
    with estimating() as estimate:
        measure(made, module)
    timed, shapes[:] = list(shapes), []
    assert estimate.passes == 1
    assert estimate.seconds > 0
    measure(made, module)
    assert {shape[0] for shape in timed} == {8, 60 % 8}
    assert max(length for _, length in shapes) <= timed[0][1] <= max(length for _, length in shapes) + 1
    assert len(timed) < len(shapes)
