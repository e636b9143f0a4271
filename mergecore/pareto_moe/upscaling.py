"""Which modules of a network get a router, by the names of its tensors.

Rules by name are the published ones (PWE-MoE, Section 4.1 and its code): "mlp" (a router for each block's MLP),
"attn+mlp" (one for its attention too) and "all" (norms, stem and final norm as well); "block" has one router a whole
block. A list of patterns says it for any network.

"all" for CLIP is exactly the published list, which names modules that have no tensors (``ln_attn``, an identity in
today's open_clip) or that image features do not depend on (two of the text tower): their routers are idle.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mergecore.errors import InputError, listed
from mergecore.registry import did_you_mean

RULES = ("mlp", "attn+mlp", "block", "all")
Part = tuple[str, int | None]
"""What a module is ("mlp", "attn", "norm", "block", "stem", "last", "other"), and the number of its block."""


@dataclass(frozen=True)
class Upscaling:
    """Modules with a router, and the tensors of each.

    Attributes:
        modules: names of the G modules, in the order of depth.
        owners: name of a tensor to its module; tensors without one are merged by task arithmetic.
        parts: name of a module to what it is.
    """

    modules: tuple[str, ...]
    owners: Mapping[str, str]
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def idle(self) -> tuple[str, ...]:
        """Modules without tensors, whose routers change nothing."""
        used = set(self.owners.values())
        return tuple(module for module in self.modules if module not in used)

    def block_of(self, name: str) -> str | None:
        """The module that a tensor belongs to; None where it has no router."""
        return self.owners.get(name)

    def describe(self, module: str) -> Part:
        """What a module is, and the number of its block, None outside of blocks."""
        return self.parts.get(module, ("other", None))


@dataclass(frozen=True)
class Family:
    """Networks that name their modules alike.

    Attributes:
        title: for messages.
        block: expression of the path of a block; its groups number the block.
        parts: what a block consists of, in order: name of a module to (what it is, the children that make it).
        stem, last: modules outside of blocks, from the root of the network.
        published: whether "all" is a published list, whose modules count whether or not they have tensors.
    """

    title: str
    block: str
    parts: Mapping[str, tuple[str, tuple[str, ...]]]
    stem: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    published: bool = False

    @property
    def rules(self) -> tuple[str, ...]:
        """Named rules that it has."""
        kinds = {kind for kind, _ in self.parts.values()}
        return tuple(rule for rule in RULES if rule in ("block", "all") or set(rule.split("+")) <= kinds)


def _own(**parts: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Parts that are one child each: its name to what it is."""
    return {name: (kind, (name,)) for name, kind in parts.items()}


FAMILIES = (
    Family(
        "CLIP of open_clip",
        r"visual\.transformer\.resblocks\.(\d+)",
        _own(ln_1="norm", attn="attn", ln_attn="norm", ln_2="norm", mlp="mlp"),
        stem=("visual.conv1", "visual.ln_pre"),
        last=("visual.ln_post", "token_embedding", "ln_final"),
        published=True,
    ),
    Family(
        "CLIP of transformers",
        r"vision_model\.encoder\.layers\.(\d+)",
        _own(layer_norm1="norm", self_attn="attn", ln_attn="norm", layer_norm2="norm", mlp="mlp"),
        stem=("vision_model.embeddings.patch_embedding", "vision_model.pre_layrnorm"),
        last=(
            "vision_model.post_layernorm",
            "text_model.embeddings.token_embedding",
            "text_model.final_layer_norm",
        ),
        published=True,
    ),
    Family(
        "GPT-2",
        r"h\.(\d+)",
        _own(ln_1="norm", attn="attn", ln_2="norm", mlp="mlp"),
        stem=("wte", "wpe"),
        last=("ln_f",),
    ),
    Family(
        "ViT and BERT of transformers",
        r"encoder\.layer\.(\d+)",
        {
            "layernorm_before": ("norm", ("layernorm_before",)),
            "attention": ("attn", ("attention",)),
            "layernorm_after": ("norm", ("layernorm_after",)),
            "mlp": ("mlp", ("intermediate", "output")),
        },
        stem=("embeddings.patch_embeddings", "embeddings.word_embeddings", "embeddings.LayerNorm"),
        last=("layernorm",),
    ),
    Family(
        "Llama-shaped",
        r"layers\.(\d+)",
        _own(
            input_layernorm="norm",
            self_attn="attn",
            attention="attn",
            post_attention_layernorm="norm",
            pre_feedforward_layernorm="norm",
            mlp="mlp",
            post_feedforward_layernorm="norm",
        ),
        stem=("embed_tokens",),
        last=("norm",),
    ),
    Family(
        "ViT of timm",
        r"blocks\.(\d+)",
        _own(norm1="norm", attn="attn", norm2="norm", mlp="mlp"),
        stem=("patch_embed", "norm_pre"),
        last=("norm", "fc_norm"),
    ),
    Family("ResNet of transformers", r"encoder\.stages\.(\d+)\.layers\.(\d+)", {}, stem=("embedder",)),
    Family("ResNet", r"layer(\d+)\.(\d+)", {}, stem=("conv1", "bn1", "norm")),
)
"""In the order in which they are looked for."""


def upscale(names: Sequence[str], modules: str | Sequence[str]) -> Upscaling:
    """Modules that get a router.

    Args:
        names: of a network's tensors, with or without a prefix before its own ("model.", "vit.", "module.").
        modules: "mlp", "attn+mlp", "block" or "all"; or patterns of paths of modules ("encoder.layer.*.attention"), to
            which all tensors below belong. Where patterns nest, the outermost module is meant.

    Raises:
        InputError: an unknown rule, one that the network has not, a network whose names are not known, a pattern that
            no module matches.
    """
    patterns = [modules] if isinstance(modules, str) else list(modules)
    if len(patterns) == 1 and patterns[0] in RULES:
        return _by_rule(list(names), patterns[0])
    plain = next((text for text in patterns if len(patterns) == 1 and not set(text) & set("*?[.")), None)
    if plain is not None and plain not in _paths(names):
        raise InputError(f"Unknown rule {plain!r} for what gets a router.", did_you_mean(plain, RULES))
    return _by_patterns(list(names), patterns)


def _by_rule(names: list[str], rule: str) -> Upscaling:
    found = ((family, _blocks(family, names)) for family in FAMILIES)
    family, blocks = next(((family, blocks) for family, blocks in found if blocks), (None, {}))
    if family is None:
        raise InputError(
            f"No rule {rule!r} is known for a network with modules like {_some(names)}.",
            "Say what gets a router by patterns: 'modules: [\"layers.*.mlp\"]'.",
        )
    if rule not in family.rules:
        raise InputError(
            f"A network like {family.title} has no rule {rule!r}.", f"It has: {', '.join(family.rules)}, and patterns."
        )
    root = next(iter(blocks.values()))
    inside = _inside(family, list(blocks), rule)
    if rule == "all":
        stem, last = (
            {root + path: ((kind, None), (root + path,)) for path in paths}
            for kind, paths in (("stem", family.stem), ("last", family.last))
        )
        wanted = {**stem, **inside, **last}
    else:
        wanted = inside
    owner = {place: module for module, (_, places) in wanted.items() for place in places}
    owners = {name: owner[place] for name in names if (place := _first_in(name, owner)) is not None}
    used = set(owners.values())
    kept = [module for module in wanted if module in used or (rule == "all" and family.published)]
    return Upscaling(tuple(kept), owners, {module: wanted[module][0] for module in kept})


def _inside(family: Family, blocks: list[str], rule: str) -> dict[str, tuple[Part, tuple[str, ...]]]:
    """Modules of the blocks: name to what it is, and the paths that make it."""
    wanted: dict[str, tuple[Part, tuple[str, ...]]] = {}
    for number, block in enumerate(blocks):
        if rule == "block" or not family.parts:
            wanted[block] = ("block", number), (block,)
            continue
        for part, (kind, children) in family.parts.items():
            if rule == "all" or kind in rule.split("+"):
                wanted[f"{block}.{part}"] = (kind, number), tuple(f"{block}.{child}" for child in children)
    return wanted


def _blocks(family: Family, names: list[str]) -> dict[str, str]:
    """Path of a block to what comes before it, in the order of depth; empty when the network is of another family."""
    children = {child for _, places in family.parts.values() for child in places}
    pattern = re.compile(rf"(?P<root>(?:.+\.)?)(?P<block>{family.block})\.(?P<child>\w+)")
    found: dict[tuple[int, ...], tuple[str, str]] = {}
    for name in names:
        match = pattern.match(name)
        if match and (not children or match["child"] in children):
            numbers = tuple(int(text) for text in re.findall(r"\d+", match["block"]))
            found.setdefault(numbers, (match["root"] + match["block"], match["root"]))
    return {block: root for _, (block, root) in sorted(found.items())}


def _by_patterns(names: list[str], patterns: list[str]) -> Upscaling:
    met = {path for path in _paths(names) if any(fnmatchcase(path, pattern) for pattern in patterns)}
    owners = {name: path for name in names if (path := _first_in(name, met)) is not None}
    missed = next((pattern for pattern in patterns if not any(fnmatchcase(p, pattern) for p in _paths(names))), None)
    if missed is not None:
        raise InputError(f"No module matches the pattern {missed!r}.", f"There are modules like {_some(names)}.")
    modules = sorted(dict.fromkeys(owners.values()), key=_natural)
    return Upscaling(tuple(modules), owners, {module: _guess(module) for module in modules})


def _paths(names: Sequence[str]) -> list[str]:
    """Paths of all modules above some tensors, the outer before the inner."""
    parts = (name.split(".") for name in names)
    return list(dict.fromkeys(".".join(own[:depth]) for own in parts for depth in range(1, len(own))))


def _first_in(name: str, places: Container[str]) -> str | None:
    return next((path for path in _paths([name]) if path in places), None)


def _some(names: Sequence[str]) -> str:
    """A few modules in the middle of the network, for messages."""
    paths = [path for path in _paths(names) if path.count(".") > 1] or _paths(names)
    return listed(paths[len(paths) // 2 : len(paths) // 2 + 3] or ["(none)"])


def _guess(module: str) -> Part:
    """What a module of a user's pattern may be."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", f".{module}")
    kind = "attn" if re.search(r"att(n|ention)", module) else "mlp" if "mlp" in module else "other"
    return kind, int(numbers[-1]) if numbers else None


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Numbers in their order: block 2 before block 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split(".")]
