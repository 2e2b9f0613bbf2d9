"""Which token mixer models text best at 0.3 million parameters and half a million bytes? See README.md."""

from dataclasses import replace

from paribus.data.batches import Data
from paribus.optim.optimizer import Optimizer
from paribus.studies.study import Study
from paribus.training.run import Budget, Evaluation, Run

BLOCK = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}

base = Run(
    name="token_mixers",
    model={
        "hidden_size": 104,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "blocks": {"main": BLOCK},
        "layout": ["main"],
    },
    data=Data(corpora={"api_docs": 1.0, "wiki": 1.0, "scripture": 1.0}, sequence_length=128, batch_size=4),
    budget=Budget(tokens=500_000),
    optimizer=Optimizer(lr=3e-3),
    evaluation=Evaluation(points=5, validation_documents=32, test_documents=96),
)

study = Study(
    question="Which token mixer models text best, with parameters, data and care held equal?",
    base=base,
    vary={
        "model.blocks.main.mixer": {
            "attention": {"name": "attention"},
            "gla": {"name": "gla"},
            "gated_delta_net": {"name": "gated_delta_net"},
            "hgrn1": {"name": "hgrn1", "preset": "real"},
        }
    },
    reference="attention",
    equal="parameters",
    tune={"optimizer.lr": [1e-3, 3e-3, 9e-3]},
    seeds=(1, 2, 3),
)

smoke = replace(
    study,
    base=replace(
        base,
        data=replace(base.data, corpora={"scripture": 1.0}, sequence_length=128, batch_size=4),
        budget=Budget(steps=30),
        evaluation=Evaluation(points=2, validation_documents=8, test_documents=16, max_bytes_per_document=512),
    ),
    vary={"model.blocks.main.mixer": {"attention": {"name": "attention"}, "gla": {"name": "gla"}}},
    tune={"optimizer.lr": [3e-3]},
    seeds=(1, 2),
)
