"""What users who have never heard of this library do with published folders.

    other_trainers.py CAUSAL_LM MASKED_LM IMAGE_CLASSIFICATION PLACE

It trains the models further with plain transformers, then LoRA adapters with peft.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

torch.set_num_threads(1)
causal_lm, masked_lm, image_classification = sys.argv[1:4]
place = Path(sys.argv[4])


@dataclass(frozen=True)
class Work:
    """A published folder, what it is trained on, and what is compared."""

    folder: str
    auto_class: Any
    dataset: list[dict[str, Any]]
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]] | None
    reader: Any
    probe: dict[str, torch.Tensor]

    def load(self) -> torch.nn.Module:
        return self.auto_class.from_pretrained(self.folder, trust_remote_code=True)

    def logits(self, model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**self.probe).logits


def text_work(folder: str, auto_class: Any, masked: bool) -> Work:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = [f"{number} plus {number} is {2 * number}. The quick brown fox jumps." for number in range(32)]
    dataset = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True)["input_ids"]]
    options = {"mlm_probability": 0.3, "seed": 0} if masked else {"mlm": False}
    collate = DataCollatorForLanguageModeling(tokenizer, **options)
    return Work(folder, auto_class, dataset, collate, tokenizer, {"input_ids": torch.tensor([texts_probe(dataset)])})


def texts_probe(dataset: list[dict[str, Any]]) -> list[int]:
    return dataset[3]["input_ids"][:24]


def image_work(folder: str) -> Work:
    processor = AutoImageProcessor.from_pretrained(folder)
    draw = np.random.Generator(np.random.PCG64(0))
    dataset = []
    for number in range(32):
        label = number % 2
        pixels = draw.integers(120 * label, 120 * label + 130, (20, 20, 3), dtype=np.uint8)
        read = processor(Image.fromarray(pixels), return_tensors="pt")
        dataset.append({"pixel_values": read["pixel_values"][0], "labels": label})
    probe = {"pixel_values": torch.stack([row["pixel_values"] for row in dataset[:4]])}
    return Work(folder, AutoModelForImageClassification, dataset, None, processor, probe)


def train(work: Work, model: torch.nn.Module, name: str, rate: float) -> None:
    arguments = TrainingArguments(
        str(place / name),
        max_steps=12,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        learning_rate=rate,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=work.dataset, data_collator=work.collate)
    before = trainer.evaluate(work.dataset)["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    after = trainer.evaluate(work.dataset)["eval_loss"]
    assert len(losses) == 12, losses
    assert losses[-1] < 0.9 * losses[0], losses
    assert after < 0.9 * before, (before, after)
    assert abs(losses[0] - before) < 0.2 * before, "what training minimises is what evaluation measures"
    trainer.save_model(str(place / name))
    work.reader.save_pretrained(place / name)


def whole_model(work: Work, name: str) -> None:
    model = work.load()
    train(work, model, name, 3e-3)
    saved = work.auto_class.from_pretrained(place / name, trust_remote_code=True)
    torch.testing.assert_close(work.logits(saved), work.logits(model), rtol=1e-5, atol=1e-5)
    print("whole model: trained, saved, loaded")


def adapter(work: Work, name: str, targets: str | list[str], **settings: Any) -> torch.nn.Module:
    """A LoRA adapter, trained; returns the adapted model."""
    original = work.load()
    model = get_peft_model(work.load(), LoraConfig(r=8, target_modules=targets, **settings))
    places = [key.rpartition(".lora_A")[0] for key, _ in model.named_parameters() if "lora_A" in key]
    adapted = {place.rpartition(".")[2] for place in places}
    assert targets == "all-linear" or adapted == set(targets), adapted
    torch.testing.assert_close(work.logits(model), work.logits(original), rtol=1e-5, atol=1e-5)  # begins as the model
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    model.enable_input_require_grads()
    train(work, model, name, 3e-2)
    assert all(torch.equal(frozen[key], value) for key, value in model.named_parameters() if key in frozen)
    print(f"adapter on {len(adapted)} kinds of projections: ", end="")
    return model


def merged(work: Work, name: str, model: torch.nn.Module, again: Any) -> None:
    """The adapter, loaded `again`, is the one that was trained, and so is the model that it is merged into."""
    torch.testing.assert_close(work.logits(again), work.logits(model), rtol=1e-5, atol=1e-5)
    merged = again.merge_and_unload()
    torch.testing.assert_close(work.logits(merged), work.logits(model), rtol=1e-4, atol=1e-4)
    merged.save_pretrained(place / f"{name}-merged")
    alone = work.auto_class.from_pretrained(place / f"{name}-merged", trust_remote_code=True)
    torch.testing.assert_close(work.logits(alone), work.logits(merged), rtol=1e-5, atol=1e-5)
    print("trained, saved, loaded, merged")


text = text_work(causal_lm, AutoModelForCausalLM, masked=False)
whole_model(text, "whole")
for name, targets in (("output", ["output"]), ("all", "all-linear")):
    adapted = adapter(text, name, targets, task_type="CAUSAL_LM")
    again = AutoPeftModelForCausalLM.from_pretrained(place / name, trust_remote_code=True)
    merged(text, name, adapted, again)

whole_model(text_work(masked_lm, AutoModelForMaskedLM, masked=True), "masked")

images = image_work(image_classification)
whole_model(images, "images")
adapted = adapter(images, "classes", ["output"], modules_to_save=["head"])
merged(images, "classes", adapted, PeftModel.from_pretrained(images.load(), place / "classes"))
