"""Does it matter how a state forgets? Eight decays in one mixer. See README.md."""

from dataclasses import replace

from paribus.data.batches import Data
from paribus.optim.optimizer import Optimizer
from paribus.studies.study import Study
from paribus.training.run import Budget, Evaluation, Run

BLOCK = {"mixer": {"name": "gla", "key_expansion": 1.0}, "channel": {"name": "glu"}}
DECAYS = ("none", "learned", "sigmoid", "sigmoid_offset", "sigmoid_temperature", "lower_bounded", "mamba", "lightnet")

base = Run(
    name="decays",
    model={
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "blocks": {"main": BLOCK},
        "layout": ["main"],
    },
    data=Data(corpora={"api_docs": 1.0, "wiki": 1.0, "scripture": 1.0}, sequence_length=128, batch_size=4),
    budget=Budget(tokens=200_000),
    optimizer=Optimizer(lr=6e-3),
    evaluation=Evaluation(points=4, validation_documents=32, test_documents=96),
)

study = Study(
    question="Does it matter how the state of gated linear attention forgets, with all else equal?",
    base=base,
    vary={"model.blocks.main.mixer.decay": {name: name for name in DECAYS}},
    reference="sigmoid_temperature",
    equal="parameters",
    tune={"optimizer.lr": [3e-3, 6e-3, 1.2e-2]},
    seeds=(1, 2, 3),
)

smoke = replace(
    study,
    base=replace(
        base,
        data=replace(base.data, corpora={"scripture": 1.0}),
        budget=Budget(steps=30),
        evaluation=Evaluation(points=2, validation_documents=8, test_documents=16, max_bytes_per_document=512),
    ),
    vary={"model.blocks.main.mixer.decay": {name: name for name in ("none", "sigmoid_temperature")}},
    tune={"optimizer.lr": [6e-3]},
    seeds=(1, 2),
)
