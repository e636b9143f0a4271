"""Evaluators: each measures one task on one merged model."""

from __future__ import annotations

from mergecore.registry import Registry

EVALUATORS = Registry(
    "evaluator",
    {
        "clip_zero_shot": "mergecore.evaluators.clip_zero_shot:ClipZeroShot",
        "image_classification": "mergecore.evaluators.image_classification:ImageClassification",
        "lm_eval": "mergecore.evaluators.lm_eval:LmEval",
        "perplexity": "mergecore.evaluators.perplexity:Perplexity",
        "python": "mergecore.evaluators.python:PythonCallable",
        "sequence_classification": "mergecore.evaluators.sequence_classification:SequenceClassification",
    },
)
"""Each entry is a subclass of `mergecore.evaluators.base.Evaluator`; adding one is a file and a line here."""
