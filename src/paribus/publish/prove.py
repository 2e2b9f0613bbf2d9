"""The proof that a published folder works where only the libraries that its card names are installed.

    python -I prove.py FOLDER_OR_HUB_NAME PROOF

It imports nothing of paribus, and hides paribus and whatever else published code must not need. It loads the
folder as its users do, compares with PROOF (``proof.safetensors``) bit for bit under the thread count recorded
there, saves the model again and loads that, and does what the model is for. It exits 0, or says what differs and
exits 1.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN = ("paribus", "einops", "jaxtyping", "fla")
_GREY_LEVEL = 1.01 / 127.5
"""Of pixels from -1 to 1, with some room for rounding."""


def main(source: str, proof: str) -> None:
    """Prove the folder or Hub name `source` against the file `proof`."""
    for name in HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say: this cannot be imported
    with tempfile.TemporaryDirectory() as place:
        os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(Path(place, "modules")))
        prove(source, Path(proof), Path(place, "again"))


@dataclass(frozen=True)
class Proof:
    """What was recorded when the folder was written."""

    facts: dict[str, str]
    tensors: dict[str, Any]


def prove(source: str, path: Path, again: Path) -> None:
    """All checks; `again` is where the model is saved once more."""
    import torch
    import transformers
    from safetensors import safe_open

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with safe_open(path, "pt") as file:
        proof = Proof(file.metadata(), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    torch.set_num_threads(int(proof.facts["threads"]))
    torch.manual_seed(0)
    with torch.inference_mode():
        TASKS[proof.facts["task"]](source, proof, str(again))


def prove_causal_lm(source: str, proof: Proof, again: str) -> None:
    """A tokenizer, and text generated with and without cache."""
    import transformers

    model = prove_model(transformers.AutoModelForCausalLM, "input_ids", source, proof, again)
    prove_tokenizer(source, proof).save_pretrained(again)
    check_generation(model, prove_tokenizer(again, proof), proof.tensors["input_ids"])


def prove_masked_lm(source: str, proof: Proof, again: str) -> None:
    """A tokenizer, and a hidden token filled by the pipeline."""
    import transformers

    prove_model(transformers.AutoModelForMaskedLM, "input_ids", source, proof, again)
    prove_tokenizer(source, proof).save_pretrained(again)
    prove_tokenizer(again, proof)
    for place in (source, again):
        fill = transformers.pipeline("fill-mask", model=place, trust_remote_code=True)
        expected = proof.tensors["filled"]
        check_scores({found["token"]: found["score"] for found in fill(proof.facts["masked"])}, expected)


def prove_image_classification(source: str, proof: Proof, again: str) -> None:
    """An image processor, and a picture of another size classified by the pipeline."""
    import transformers
    from PIL import Image

    model = prove_model(transformers.AutoModelForImageClassification, "pixel_values", source, proof, again)
    picture = Image.fromarray(proof.tensors["picture"].numpy())
    processor = transformers.AutoImageProcessor.from_pretrained(source)
    processor.save_pretrained(again)
    for place in (source, again):
        processor = transformers.AutoImageProcessor.from_pretrained(place)
        read = processor(picture, return_tensors="pt")["pixel_values"]
        # Where torchvision is installed, transformers takes its resizing, which may round to the next grey level.
        check_equal(read, proof.tensors["read"], "the pixels that the image processor reads", tolerance=_GREY_LEVEL)
        classify = transformers.pipeline("image-classification", model=place, trust_remote_code=True)
        numbers = model.config.label2id
        found = {numbers[found["label"]]: found["score"] for found in classify(picture, top_k=len(numbers))}
        check_scores(found, model(read).logits[0].softmax(-1))


def prove_image_generation(source: str, proof: Proof, again: str) -> None:
    """Velocities of the model, and images drawn by the pipeline."""
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    model = aligned(pipeline.denoiser)
    inputs = {name: proof.tensors[name] for name in ("pixel_values", "times", "classes")}
    check_equal(model(**inputs).velocity, proof.tensors["velocity"], "the velocities")
    numbers = inputs["classes"].tolist()
    for labels in (numbers, [model.config.id2label[number] for number in numbers]):
        images = pipeline(
            class_labels=labels,
            num_inference_steps=int(proof.facts["steps"]),
            guidance_scale=float(proof.facts["guidance"]),
            solver=proof.facts["solver"],
            generator=torch.Generator().manual_seed(int(proof.facts["seed"])),
            output_type="pt",
        ).images
        check_equal(images, proof.tensors["images"], "the images")
    pictures = pipeline(class_labels=numbers, num_inference_steps=1).images
    sizes = {picture.size for picture in pictures}
    check(sizes == {(model.config.image["size"],) * 2}, f"the pictures drawn have sizes {sizes}")
    model.save_pretrained(again)
    saved = load(transformers.AutoModel, again)
    check_equal(saved(**inputs).velocity, proof.tensors["velocity"], "the velocities after saving and loading again")


def prove_model(auto_class: Any, argument: str, source: str, proof: Proof, again: str) -> Any:
    """The model by `auto_class`, its backbone by AutoModel, and the model saved again; returns the model."""
    import transformers

    inputs = {argument: proof.tensors[argument]}
    model = load(auto_class, source)
    check_equal(model(**inputs).logits, proof.tensors["logits"], "the logits")
    hidden = load(transformers.AutoModel, source)(**inputs).last_hidden_state
    check_equal(hidden, model.model(**inputs).last_hidden_state, "the hidden states of AutoModel")
    model.save_pretrained(again)
    saved = load(auto_class, again)
    check_equal(saved(**inputs).logits, proof.tensors["logits"], "the logits after saving and loading again")
    return model


def load(auto_class: Any, source: str) -> Any:
    """The model of one Auto class."""
    return aligned(auto_class.from_pretrained(source, trust_remote_code=True).eval())


def aligned(model: Any) -> Any:
    """`model`, its weights moved into memory of their own.

    Loading maps the file into memory, where weights begin at any address; the last bits of a matrix product
    depend on that. Fresh memory is aligned, as it was when the numbers of the proof were computed.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def check(holds: bool, problem: str) -> None:
    """Exit with `problem` unless it `holds`."""
    if not holds:
        raise SystemExit(problem)


def check_equal(found: Any, expected: Any, what: str, tolerance: float = 0.0) -> None:
    """Equal to the last bit, or to `tolerance`."""
    check(found.shape == expected.shape, f"{what} have shape {found.shape}, not {expected.shape}")
    difference = (found - expected).abs().max().item()
    check(difference <= tolerance, f"{what} differ from the proof by up to {difference:.3g}")


def check_scores(found: dict[int, float], expected: Any) -> None:
    """Probabilities that a pipeline gives, the largest among them; it loads weights where it likes, see `aligned`."""
    scores = {number: expected[number].item() for number in found}
    close = all(abs(found[number] - scores[number]) < 1e-4 for number in found)
    check(close, f"the pipeline gives the probabilities {found}, not {scores}")
    check(max(found.values()) > expected.max().item() - 1e-4, f"the pipeline gives {found}, not the likeliest")


def prove_tokenizer(source: str, proof: Proof) -> Any:
    """The same ids for the same text, and the same text back; returns the tokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    found, expected = tokenizer(proof.facts["text"])["input_ids"], proof.tensors["text_ids"].tolist()
    check(found == expected, f"the tokenizer gives {found}, not {expected}")
    decoded = tokenizer.decode(found)
    check(decoded == proof.facts["decoded"], f"the tokenizer decodes to {decoded!r}, not {proof.facts['decoded']!r}")
    return tokenizer


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


TASKS: dict[str, Callable[[str, Proof, str], None]] = {
    "causal_lm": prove_causal_lm,
    "masked_lm": prove_masked_lm,
    "image_classification": prove_image_classification,
    "image_generation": prove_image_generation,
}
"""How each task is proved."""

if __name__ == "__main__":
    main(*sys.argv[1:])
