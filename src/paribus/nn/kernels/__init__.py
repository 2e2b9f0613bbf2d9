"""The six computations that all mixers reduce to, and what they are made of.

    attention    scores of queries and keys, normalised: attention, attention_forms, attention_blocks, normalisers
    recurrence   S ← Diag(a) S + k vᵀ: recurrence, values (read on the value side), shared_keys (a few keys for many
                 heads), solve (a linear system in each state), log_sum (running softmax)
    delta        a triangular system, then the recurrence: delta; it shares chunks with recurrence
    scan         h ← a ⊙ h + x: scan, state_space (N states a channel, read at once)
    convolution  long ones by FFT, short ones by taps: convolution, spacing
    tokens       a matrix between tokens: tokens, axial (along one axis), averages (positive weights); alignment

choice says who computes the gated ones, fla is one who may; cost counts the FLOPs that torch's counter cannot see.
"""
