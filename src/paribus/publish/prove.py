"""The proof that a published folder works where only torch and transformers are installed.

    python -I prove.py FOLDER_OR_HUB_NAME PROOF

It imports nothing of paribus, and hides paribus and whatever else published code must not need. It loads the
folder through the Auto classes, compares with PROOF (``proof.safetensors``) bit for bit under the thread
count recorded there, saves everything again and loads that, and generates with and without cache. It exits 0,
or says what differs and exits 1.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HIDDEN = ("paribus", "einops", "jaxtyping", "fla")


def main(source: str, proof: str) -> None:
    """Prove the folder or Hub name `source` against the file `proof`."""
    for name in HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say: this cannot be imported
    with tempfile.TemporaryDirectory() as place:
        os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(Path(place, "modules")))
        prove(source, Path(proof), Path(place, "again"))


def prove(source: str, proof: Path, again: Path) -> None:
    """All checks; `again` is where the model is saved once more."""
    import torch
    import transformers
    from safetensors import safe_open

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with safe_open(proof, "pt") as file:
        facts = file.metadata()
        ids, logits, text_ids = (file.get_tensor(name) for name in ("input_ids", "logits", "text_ids"))
    torch.set_num_threads(int(facts["threads"]))
    torch.manual_seed(0)
    with torch.inference_mode():
        model = load(transformers.AutoModelForCausalLM, source)
        check_logits(model(ids).logits, logits, "the logits")
        backbone = load(transformers.AutoModel, source)
        hidden = backbone(ids).last_hidden_state
        check(torch.equal(hidden, model.model(ids).last_hidden_state), "AutoModel gives other hidden states")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=True)
        check_tokenizer(tokenizer, facts, text_ids.tolist())

        model.save_pretrained(again)
        tokenizer.save_pretrained(again)
        saved = load(transformers.AutoModelForCausalLM, str(again))
        check_logits(saved(ids).logits, logits, "the logits after saving and loading again")
        tokenizer = transformers.AutoTokenizer.from_pretrained(again, trust_remote_code=True)
        check_tokenizer(tokenizer, facts, text_ids.tolist())
        check_generation(model, tokenizer, ids)


def load(auto_class: Any, source: str) -> Any:
    """The model of one Auto class, its weights moved into memory of their own.

    Loading maps the file into memory, where weights begin at any address; the last bits of a matrix product
    depend on that. Fresh memory is aligned, as it was when the logits of the proof were computed.
    """
    model = auto_class.from_pretrained(source, trust_remote_code=True).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def check(holds: bool, problem: str) -> None:
    """Exit with `problem` unless it `holds`."""
    if not holds:
        raise SystemExit(problem)


def check_logits(found: Any, expected: Any, what: str) -> None:
    """Equal to the last bit."""
    check(found.shape == expected.shape, f"{what} have shape {found.shape}, not {expected.shape}")
    if not found.equal(expected):
        difference = (found - expected).abs().max().item()
        raise SystemExit(f"{what} differ from the proof by up to {difference:.3g}")


def check_tokenizer(tokenizer: Any, facts: dict[str, str], expected: list[int]) -> None:
    """The same ids for the same text, and the same text back."""
    found = tokenizer(facts["text"])["input_ids"]
    check(found == expected, f"the tokenizer gives {found}, not {expected}")
    decoded = tokenizer.decode(found)
    check(decoded == facts["decoded"], f"the tokenizer decodes to {decoded!r}, not {facts['decoded']!r}")


def check_generation(model: Any, tokenizer: Any, ids: Any) -> None:
    """The same tokens with and without cache, in float64, where rounding decides no tie. Changes `model`."""
    length = max(1, ids.shape[1] // 2)
    prompt = {"input_ids": ids[:, :length], "attention_mask": ids.new_ones(ids.shape[0], length)}
    count = ids.shape[1] - length + 1
    sample = model.generate(**prompt, max_new_tokens=count, do_sample=True)
    check(isinstance(tokenizer.decode(sample[0]), str), "what was generated cannot be decoded")
    model.double()
    greedy = {**prompt, "max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    cached, uncached = (model.generate(**greedy, use_cache=use_cache) for use_cache in (True, False))
    check(cached.equal(uncached), f"generated with cache: {cached.tolist()}, without: {uncached.tolist()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
