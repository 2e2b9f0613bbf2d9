"""Is a mixer that is good at one task good at the others? One mixer per kernel, four tasks. See README.md."""

from dataclasses import replace
from typing import Any

from paribus.data.batches import Data
from paribus.optim.optimizer import Optimizer
from paribus.studies.study import Leaves, Study
from paribus.training.run import Budget, Evaluation, Run, Sampling

MIXER = "model.blocks.main.mixer"
MIXERS: dict[str, dict[str, Any]] = {
    "attention": {"name": "attention", "num_heads": 4},
    "hgrn2": {"name": "hgrn2", "num_heads": 4},
    "gated_delta_net": {"name": "gated_delta_net", "num_heads": 4},
    "tnn": {"name": "tnn"},
    "mlp_mixer": {"name": "mlp_mixer"},
}
"""One for each kernel but the scan: attention, recurrence, delta, convolution, tokens."""

base = Run(
    name="four_tasks",
    model={
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "max_position_embeddings": 128,
        "blocks": {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}},
        "layout": ["main"],
    },
    data=Data(corpora={"scripture": 1.0}, sequence_length=128, batch_size=8),
    budget=Budget(steps=400),
    optimizer=Optimizer(lr=4e-3),
    evaluation=Evaluation(
        points=3,
        validation_documents=24,
        test_documents=64,
        sampling=Sampling(num_images=500, steps=10, solver="heun", guidance=3.0),
    ),
)


def on_images(task: str, num_channels: int, leaves: dict[str, Any]) -> Leaves:
    """MNIST-5k in 16 patches of 7 x 7 pixels."""
    shape = {
        "model.task": {"name": task, "num_classes": 10},
        "model.causal": False,
        "model.image": {"size": 28, "patch_size": 7, "num_channels": num_channels},
        "model.max_position_embeddings": 16,
        "model.position": "learned_2d",
    }
    return Leaves({**shape, **leaves})


TASKS = {
    "causal_lm": Leaves({"model.task": {"name": "causal_lm"}}),
    "masked_lm": Leaves({"model.task": {"name": "masked_lm"}, "model.causal": False}),
    "classification": on_images(
        "image_classification",
        3,  # what the pipeline of transformers hands in
        {
            "data": {"images": "mnist_5k", "batch_size": 64, "crop": 2},
            "objective": {"label_smoothing": 0.1},
            "budget.steps": 700,
            "optimizer.lr": 3e-3,
        },
    ),
    "generation": on_images(
        "image_generation",
        1,  # noise in three channels is three times as much to tell a patch's token
        {
            "model.hidden_size": 96,
            "model.blocks.main.residual": {"name": "adaln_zero"},
            "data": {"images": "mnist_5k", "batch_size": 48},
            "objective": {"times": "logit_normal"},
            "budget.steps": 1500,
            "optimizer.lr": 6e-3,
            "ema_decay": 0.995,
        },
    ),
}

study = Study(
    question="Is a token mixer that is good at one task good at the others, with all else equal?",
    base=base,
    vary={MIXER: MIXERS, "task": TASKS},
    reference="attention+causal_lm",
    within=("task",),
    equal="parameters",
    seeds=(1, 2, 3),
)

smoke = replace(
    study,
    base=replace(
        base,
        budget=Budget(steps=20),
        evaluation=Evaluation(
            points=1,
            validation_documents=4,
            test_documents=8,
            max_bytes_per_document=256,
            validation_images=50,
            test_images=50,
            sampling=Sampling(num_images=0),
        ),
    ),
    vary={
        MIXER: {name: MIXERS[name] for name in ("attention", "hgrn2")},
        "task": {name: Leaves({**level.values, "budget.steps": 20}) for name, level in TASKS.items()},
    },
    seeds=(1,),
)
