"""Where should norms stand? Four residual schemes, in shallow models and in deep ones. See README.md."""

from dataclasses import replace

from paribus.data.batches import Data
from paribus.optim.optimizer import Optimizer
from paribus.studies.study import Study
from paribus.training.run import Budget, Evaluation, Run

RESIDUAL = "model.blocks.main.residual"
DEPTH = "model.num_hidden_layers"
SCHEMES = ("pre", "post", "sandwich", "rezero")

base = Run(
    name="norm_placement",
    model={
        "hidden_size": 64,
        "max_position_embeddings": 1024,
        "blocks": {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}},
        "layout": ["main"],
    },
    data=Data(corpora={"api_docs": 1.0, "wiki": 1.0, "scripture": 1.0}, sequence_length=128, batch_size=4),
    budget=Budget(tokens=150_000),
    optimizer=Optimizer(lr=6e-3),
    evaluation=Evaluation(points=3, validation_documents=32, test_documents=96),
)

study = Study(
    question="Where should the norms of a block stand, in shallow models and in deep ones, with all else equal?",
    base=base,
    vary={RESIDUAL: {name: {"name": name} for name in SCHEMES}, DEPTH: {"2": 2, "6": 6}},
    reference="pre+2",
    within=(DEPTH,),
    equal="parameters",
    tune={"optimizer.lr": [1.5e-3, 6e-3, 2.4e-2]},
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
    vary={RESIDUAL: {name: {"name": name} for name in ("pre", "rezero")}, DEPTH: {"1": 1, "2": 2}},
    reference="pre+1",
    tune={"optimizer.lr": [6e-3]},
    seeds=(1, 2),
)
