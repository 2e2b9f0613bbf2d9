"""What a user who has never heard of this library does with a published folder: other_trainers.py FOLDER PLACE.

It trains the model further with plain transformers, then a LoRA adapter with peft.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

torch.set_num_threads(1)
folder, place = sys.argv[1], Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
texts = [f"{number} plus {number} is {2 * number}. The quick brown fox jumps." for number in range(32)]
dataset = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True)["input_ids"]]
probe = torch.tensor([dataset[3]["input_ids"][:24]])


def load() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def train(model: torch.nn.Module, name: str, rate: float) -> None:
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
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collate)
    before = trainer.evaluate(dataset)["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    after = trainer.evaluate(dataset)["eval_loss"]
    assert len(losses) == 12, losses
    assert losses[-1] < 0.9 * losses[0], losses
    assert after < 0.9 * before, (before, after)
    assert abs(losses[0] - before) < 0.2 * before, "what training minimises is what evaluation measures"
    trainer.save_model(str(place / name))
    tokenizer.save_pretrained(place / name)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=probe).logits


def whole_model() -> None:
    model = load()
    train(model, "whole", 3e-3)
    saved = AutoModelForCausalLM.from_pretrained(place / "whole", trust_remote_code=True)
    torch.testing.assert_close(logits(saved), logits(model), rtol=1e-5, atol=1e-5)
    print("whole model: trained, saved, loaded")


def adapter(name: str, targets: str | list[str]) -> None:
    original = load()
    model = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets))
    places = [key.rpartition(".lora_A")[0] for key, _ in model.named_parameters() if "lora_A" in key]
    adapted = {place.rpartition(".")[2] for place in places}
    assert targets == "all-linear" or adapted == set(targets), adapted
    torch.testing.assert_close(logits(model), logits(original), rtol=1e-5, atol=1e-5)  # it begins as the model is
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    model.enable_input_require_grads()
    train(model, name, 3e-2)
    assert all(torch.equal(frozen[key], value) for key, value in model.named_parameters() if key in frozen)
    again = AutoPeftModelForCausalLM.from_pretrained(place / name, trust_remote_code=True)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    merged.save_pretrained(place / f"{name}-merged")
    alone = AutoModelForCausalLM.from_pretrained(place / f"{name}-merged", trust_remote_code=True)
    torch.testing.assert_close(logits(alone), logits(merged), rtol=1e-5, atol=1e-5)
    print(f"adapter on {len(adapted)} kinds of projections: trained, saved, loaded, merged")


whole_model()
adapter("output", ["output"])
adapter("all", "all-linear")
