"""The audit: what differs between the arms, proven by machine, and what does not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from paribus.training.folder import read_record, read_result
from paribus.training.journal import read_journal
from paribus.training.model import build_model
from paribus.training.run import Run

from .equalizers import TOLERANCE, Equalized
from .result import ArmResult, Audit, Difference
from .study import Equalizer, Study

_RATIOS = (
    "parameters",
    "flops_per_token",
    "flops",
    "tokens",
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
)

_LIMITS: dict[Equalizer, float] = {"parameters": TOLERANCE, "tokens": 0.0, "flops": 0.01, "seconds": 0.1}


def audit(study: Study, equalized: Equalized, arms: list[ArmResult], chosen: Mapping[str, Run]) -> Audit:
    """Compare the arms of each level with each other, and their sizes with those of their reference.

    Args:
        chosen: each arm's run with its tuned values, for the first seed.

    Raises:
        ValueError: the arms of a level were trained on different data.
    """
    differences = _differences(study, equalized, chosen)
    references = study.references()
    levels: dict[str, list[ArmResult]] = {reference: [] for reference in references.values()}
    for arm in arms:
        levels[references[arm.name]].append(arm)
    equal = [_equal_settings(chosen, references)]
    confounds = [f"{d.path} differs and was not declared" for d in differences if not d.declared]
    environments = [read_record(folder)["environment"] for folder in _folders(arms)]
    statements = [_same("versions and machine", environments)]
    for reference, compared in levels.items():
        name = f" ({reference} and its arms)" if len(levels) > 1 else ""
        statements += [(f"{text}{name}", holds) for text, holds in _same_work(study, compared)]
    for statement, holds in (*statements, *_sizes(study, levels)):
        (equal if holds else confounds).append(statement)
    return Audit(
        declared=tuple(study.varied_paths()),
        differences=tuple(differences),
        equal=tuple(equal),
        confounds=tuple(confounds),
        solved=equalized.solved,
        shared_parameters=_shared_parameters(study.references(), chosen),
        ratios=_ratios(study.references(), arms),
    )


def _folders(arms: Sequence[ArmResult]) -> list[Path]:
    return [Path(seed.run_folder) for arm in arms for seed in arm.seeds]


def _same_work(study: Study, arms: list[ArmResult]) -> list[tuple[str, bool]]:
    """That the arms of one level read, ran and were measured on the same: statements, and whether they hold."""
    folders = _folders(arms)
    records = [read_record(folder) for folder in folders]
    return [
        _same_data(records),
        *([] if _varies_data(study) else _same_batches(arms)),
        _same_documents(folders),
        _same("code outside the varied components", _shared_sources(records)),
    ]


def _differences(study: Study, equalized: Equalized, chosen: Mapping[str, Run]) -> list[Difference]:
    """Every leaf of the runs that is not the same in all arms."""
    leaves = {name: _leaves(run.to_json()) for name, run in chosen.items()}
    solved = {path for values in equalized.solved.values() for path in values}
    declared = (*study.varied_paths(), *study.tune, *solved)
    found = []
    for path in sorted({path for values in leaves.values() for path in values}):
        values = {name: leaves[name].get(path, "default") for name in leaves}
        if path != "name" and len({repr(value) for value in values.values()}) > 1:
            known = any(path == prefix or path.startswith(f"{prefix}.") for prefix in declared)
            found.append(Difference(path, values, known or _replaces_budget(path, solved)))
    return found


def _replaces_budget(path: str, solved: set[str]) -> bool:
    """Solving the steps empties the other forms of a budget."""
    return path.startswith("budget.") and any(name.startswith("budget.") for name in solved)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        found = {}
        for key, item in value.items():
            found.update(_leaves(item, f"{path}.{key}" if path else key))
        return found
    return {path: value}


def _equal_settings(chosen: Mapping[str, Run], references: Mapping[str, str]) -> str:
    """How many settings no arm has otherwise than its reference."""
    leaves = {name: _leaves(run.to_json()) for name, run in chosen.items()}
    paths = {path for values in leaves.values() for path in values} - {"name"}
    missing = object()  # a setting that neither has is the same, too
    differ = {
        path
        for path in paths
        for name, reference in references.items()
        if leaves[name].get(path, missing) != leaves[reference].get(path, missing)
    }
    where = "all arms" if len(set(references.values())) == 1 else "all arms of a level"
    same = len(paths) - len(differ)
    return f"settings: {same} of {len(paths)} are the same in {where} (optimizer, schedule, data, precision, …)"


def _same_data(records: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    corpora = [record["manifests"]["corpora"] for record in records]
    if any(manifests != corpora[0] for manifests in corpora):
        raise ValueError("arms were trained on different data (their manifests differ); remove the older runs")
    digest = hashlib.sha256(repr(sorted(corpora[0].items())).encode()).hexdigest()[:16]
    return f"data: manifests {digest} in all runs", True


def _varies_data(study: Study) -> bool:
    """Whether batches differ because the study says so: another tokenizer, another length."""
    return any(path.startswith("data.") for path in study.compared_paths())


def _same_batches(arms: list[ArmResult]) -> list[tuple[str, bool]]:
    """One statement a seed: the rolling hash of consumed batches at the last step that all arms logged."""
    statements = []
    for seed in sorted({run.seed for arm in arms for run in arm.seeds}):
        hashes = []
        for arm in arms:
            for run in arm.seeds:
                if run.seed == seed:
                    journal = read_journal(Path(run.run_folder) / "journal.jsonl")
                    hashes.append({event["step"]: event["batches_sha256"] for event in journal})
        common = set.intersection(*(set(steps) for steps in hashes)) if hashes else set()
        if not common:
            statements.append((f"batches of seed {seed}: no common step to compare", False))
            continue
        last = max(common)
        digests = {steps[last] for steps in hashes}
        if len(digests) == 1:
            text = f"batches of seed {seed}: SHA-256 {digests.pop()[:16]} after {last:,} steps in all arms"
            statements.append((text, True))
        else:
            statements.append((f"batches of seed {seed} differ between arms", False))
    return statements


def _same_documents(folders: Sequence[Path]) -> tuple[str, bool]:
    """Whether all runs were tuned on the same validation split and judged on the same test split."""
    hashes = [(read_result(folder) or {}).get("documents_sha256") for folder in folders]
    if any(value != hashes[0] for value in hashes) or hashes[0] is None:
        return "held-out documents or images differ between runs", False
    shown = ", ".join(f"{split} SHA-256 {digest[:16]}" for split, digest in hashes[0].items())
    return f"measure: the same held-out documents or images in all runs ({shown})", True


def _same(what: str, values: Sequence[Any]) -> tuple[str, bool]:
    """Whether `values`, one a run, are the same."""
    same = all(value == values[0] for value in values)
    return f"{what}: the same in all runs" if same else f"{what} differ between runs", same


def _shared_sources(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """By run, the hashes of the files that all runs use."""
    common = sorted(set.intersection(*(set(record["sources"]) for record in records)))
    return [[record["sources"][path] for path in common] for record in records]


def _sizes(study: Study, levels: Mapping[str, list[ArmResult]]) -> list[tuple[str, bool]]:
    """The equalizer's promise, checked on what the finished runs measured."""
    quantities: tuple[Equalizer, ...] = ("parameters", "tokens") if study.equal == "parameters" else (study.equal,)
    return [_size(quantity, level, arms) for quantity in quantities for level, arms in levels.items()]


def _size(quantity: Equalizer, reference: str, arms: list[ArmResult]) -> tuple[str, bool]:
    """How far the means of the reference's arms are from its own; an arm that only diverged is left out."""
    values = {
        arm.name: [float(getattr(seed, quantity)) for seed in arm.seeds if seed.status == "finished"] for arm in arms
    }
    means = {name: sum(items) / len(items) for name, items in values.items() if items}
    if reference not in means:
        return f"{quantity}: the reference {reference} has no finished run to compare with", False
    worst = max(abs(mean / means[reference] - 1) for mean in means.values())
    return f"{quantity}: within {worst:.2%} of {reference}'s {means[reference]:,.0f}", worst <= _LIMITS[quantity]


def _shared_parameters(references: Mapping[str, str], chosen: Mapping[str, Run]) -> dict[str, float]:
    """By arm, the share of its parameters that start with the bits of its reference's of the same name and shape."""
    first = {name: dict(build_model(chosen[name]).named_parameters()) for name in set(references.values())}
    shares = {}
    for name, run in chosen.items():
        theirs, own = first[references[name]], dict(build_model(run).named_parameters())
        shared = sum(p.numel() for key, p in own.items() if key in theirs and torch.equal(p, theirs[key]))
        shares[name] = shared / sum(p.numel() for p in own.values())
    return shares


def _ratios(references: Mapping[str, str], arms: list[ArmResult]) -> dict[str, dict[str, float]]:
    """By arm, the mean of each measured quantity as a multiple of its reference's."""
    means = {arm.name: {key: _mean(arm, key) for key in _RATIOS} for arm in arms}
    return {
        name: {
            key: value / means[references[name]][key] for key, value in values.items() if means[references[name]][key]
        }
        for name, values in means.items()
    }


def _mean(arm: ArmResult, quantity: str) -> float:
    values = [getattr(seed, quantity) for seed in arm.seeds]
    return sum(value or 0 for value in values) / len(values)
