"""Text as a model reads it: corpora, tokenizers, batches as a function of the step, held-out documents."""
