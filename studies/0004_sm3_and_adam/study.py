"""Is SM3 with Nesterov momentum as good as Adam, and steadier, at half its memory? See README.md."""

from dataclasses import replace

from paribus.data.batches import Data
from paribus.optim.optimizer import Optimizer
from paribus.studies.study import Leaves, Study
from paribus.training.run import Budget, Evaluation, Run

base = Run(
    name="sm3_and_adam",
    model={
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "blocks": {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}},
        "layout": ["main"],
    },
    data=Data(corpora={"api_docs": 1.0, "wiki": 1.0, "scripture": 1.0}, sequence_length=128, batch_size=4),
    budget=Budget(tokens=300_000),
    optimizer=Optimizer(name="adamw"),
    evaluation=Evaluation(points=3, validation_documents=32, test_documents=96),
)

study = Study(
    question="Is SM3 as good as Adam at half its memory, each at its own best learning rate?",
    base=base,
    vary={
        "optimizer": {
            "adamw": Leaves({"optimizer.name": "adamw"}),
            "sm3": Leaves({"optimizer.name": "sm3", "optimizer.settings": {"momentum": 0.9}}),
            "sm3_without_momentum": Leaves({"optimizer.name": "sm3", "optimizer.settings": {"momentum": 0.0}}),
        }
    },
    reference="adamw",
    equal="tokens",
    tune={"optimizer.lr": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]},
    seeds=(1, 2, 3, 4, 5),
)

smoke = replace(
    study,
    base=replace(
        base,
        data=replace(base.data, corpora={"scripture": 1.0}),
        budget=Budget(steps=30),
        evaluation=Evaluation(points=2, validation_documents=8, test_documents=16, max_bytes_per_document=512),
    ),
    vary={"optimizer": {name: study.vary["optimizer"][name] for name in ("adamw", "sm3")}},
    tune={"optimizer.lr": [3e-3, 3e-2]},
    seeds=(1, 2),
)
