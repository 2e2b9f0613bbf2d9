"""The optimizers on offer: whose class each one is, and what differs from that class's defaults.

All of them take a learning rate and a weight decay, follow both, are driven by gradients alone, and continue from a
checkpoint to the bit. Where a class can keep weight decay apart from the gradient (w ← (1 - lr · decay) w), it does.
What torch and pytorch-optimizer have besides is not offered:

    a2grad adashift alig amos fromage ftrl gravity msvag nero srmm    take no weight decay
    asgd dadaptadagrad dadaptadam dadaptadan dadaptlion dadaptsgd     overrule the learning rates of groups
    adasmooth                                                         does not shrink weights by weight decay
    lbfgs emofact emolynx emonavi                                     need the loss as a function
    rprop sparseadam                                                  are for whole data sets, for sparse gradients
    adahessian sophiah                                                need gradients of gradients
    adalomo lomo adammini bsam magma ranger21                         need a model, a length or another optimizer
    apollo fira galore                                                are AdamW without keys of their own in groups
    demo distributedmuon                                              are for several processes
    muonclip spectralsphere                                           need the parts of attention; matrices alone
    lorarite sara                                                     are for fine-tuning
    spam                                                              fails where a parameter has no gradient
    adalite rose                                                      are not published
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One optimizer."""

    summary: str
    """What it is, and its source."""
    cls: str
    """The class, as module:name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """House defaults, in place of the class's."""
    one_lr: bool = False
    """It reads the learning rate of one group for all, so that roles cannot have their own."""


_MOONLIGHT = {"use_adjusted_lr": True}
"""Updates of matrices as long as Adam's (Liu et al. 2025, arXiv:2502.16982), so that one learning rate fits all."""

OPTIMIZERS: dict[str, Entry] = {
    "adafactor": Entry(
        "Adam with second moments of rows and columns (Shazeer and Stern 2018, arXiv:1804.04235)",
        "torch.optim:Adafactor",
    ),
    "adagrad": Entry("sums of squared gradients; decay in the gradient (Duchi et al. 2011)", "torch.optim:Adagrad"),
    "adam": Entry(
        "bias-corrected moments; decay in the gradient (Kingma and Ba 2015, arXiv:1412.6980)",
        "torch.optim:Adam",
        {"betas": (0.9, 0.95), "decoupled_weight_decay": False},
    ),
    "adamw": Entry(
        "Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)",
        "torch.optim:AdamW",
        {"betas": (0.9, 0.95), "fused": True},
    ),
    "nadam": Entry("Adam with Nesterov momentum (Dozat 2016)", "torch.optim:NAdam"),
    "radam": Entry(
        "Adam that begins as momentum until variances are known (Liu et al. 2020, arXiv:1908.03265)",
        "torch.optim:RAdam",
    ),
    "rmsprop": Entry(
        "gradients over their root mean square; decay in the gradient (Tieleman and Hinton 2012)", "torch.optim:RMSprop"
    ),
    "sgd": Entry(
        "gradients, with momentum 0.9; decay in the gradient (Polyak 1964)", "torch.optim:SGD", {"momentum": 0.9}
    ),
    "sm3": Entry(
        "one second moment for each row and column, Nesterov momentum (Anil et al. 2019, arXiv:1901.11150)",
        "paribus.optim.sm3:SM3",
    ),
    "accsgd": Entry(
        "accelerated gradients for noisy least squares (Jain et al. 2018, arXiv:1704.08227)", "pytorch_optimizer:AccSGD"
    ),
    "adabelief": Entry(
        "Adam over the variance around the first moment (Zhuang et al. 2020, arXiv:2010.07468)",
        "pytorch_optimizer:AdaBelief",
    ),
    "adabound": Entry(
        "Adam whose step sizes are bounded ever closer to SGD's (Luo et al. 2019, arXiv:1902.09843)",
        "pytorch_optimizer:AdaBound",
    ),
    "adadelta": Entry(
        "steps as large as recent ones, over root mean squares (Zeiler 2012, arXiv:1212.5701)",
        "pytorch_optimizer:AdaDelta",
    ),
    "adagc": Entry(
        "Adam that clips each tensor by its own past norm (Wang et al. 2025, arXiv:2502.11034)",
        "pytorch_optimizer:AdaGC",
    ),
    "adago": Entry(
        "Muon with the step size of AdaGrad-Norm (Zhang et al. 2025, arXiv:2509.02981)",
        "pytorch_optimizer:AdaGO",
        _MOONLIGHT,
    ),
    "adai": Entry(
        "momentum that adapts in place of the step size (Xie et al. 2022, arXiv:2006.15815)", "pytorch_optimizer:Adai"
    ),
    "adamax": Entry(
        "Adam with the largest gradient for second moment (Kingma and Ba 2015, arXiv:1412.6980)",
        "pytorch_optimizer:AdaMax",
    ),
    "adamc": Entry(
        "AdamW whose decay follows the schedule (Defazio 2025, arXiv:2506.02285)", "pytorch_optimizer:AdamC"
    ),
    "adamg": Entry("Adam that finds its own step size (Pan et al. 2024, arXiv:2405.04376)", "pytorch_optimizer:AdamG"),
    "adamod": Entry("Adam with smoothed step sizes (Ding et al. 2019, arXiv:1910.12249)", "pytorch_optimizer:AdaMod"),
    "adamp": Entry(
        "Adam without the part along scale-invariant weights (Heo et al. 2021, arXiv:2006.08217)",
        "pytorch_optimizer:AdamP",
    ),
    "adams": Entry("Adam with stable weight decay (Xie et al. 2023, arXiv:2011.11152)", "pytorch_optimizer:AdamS"),
    "adamuon": Entry(
        "Muon with second moments of its updates (Si et al. 2025, arXiv:2507.11005)", "pytorch_optimizer:AdaMuon"
    ),
    "adamwsn": Entry(
        "AdamW with one second moment for each row (Nguyen and Nguyen 2024, arXiv:2411.07120)",
        "pytorch_optimizer:AdamWSN",
    ),
    "adan": Entry(
        "moments of gradients, of their differences, and of both (Xie et al. 2022, arXiv:2208.06677)",
        "pytorch_optimizer:Adan",
    ),
    "adanorm": Entry(
        "Adam with gradients no shorter than their mean norm (Dubey et al. 2022, arXiv:2210.06364)",
        "pytorch_optimizer:AdaNorm",
    ),
    "adapnm": Entry(
        "Adam with positive-negative momentum (Xie et al. 2021, arXiv:2103.17182)", "pytorch_optimizer:AdaPNM"
    ),
    "adatam": Entry(
        "Adam with torque-aware momentum (Malviya et al. 2024, arXiv:2412.18790)", "pytorch_optimizer:AdaTAM"
    ),
    "ademamix": Entry(
        "AdamW with a second, much slower first moment (Pagliardini et al. 2024, arXiv:2409.03137)",
        "pytorch_optimizer:AdEMAMix",
    ),
    "adopt": Entry(
        "Adam that normalises before it averages (Taniguchi et al. 2024, arXiv:2411.02853)", "pytorch_optimizer:ADOPT"
    ),
    "aggmo": Entry("the mean of several momenta (Lucas et al. 2019, arXiv:1804.00325)", "pytorch_optimizer:AggMo"),
    "aida": Entry(
        "AdaBelief with a narrower range of step sizes (Zhang et al. 2022, arXiv:2203.13273)", "pytorch_optimizer:Aida"
    ),
    "alice": Entry(
        "low-rank structured Fisher preconditioning (Gong et al. 2025, arXiv:2502.07752)", "pytorch_optimizer:Alice"
    ),
    "ano": Entry(
        "the direction of momentum, the size of the gradient (Kegreisz 2025, arXiv:2508.18258)", "pytorch_optimizer:Ano"
    ),
    "apollodqn": Entry(
        "diagonal quasi-Newton (Ma 2020, arXiv:2009.13586)",
        "pytorch_optimizer:ApolloDQN",
        {"warmup_steps": 0, "weight_decay_type": "decoupled"},
    ),
    "avagrad": Entry(
        "Adam with delayed, normalised step sizes (Savarese et al. 2021, arXiv:1912.01823)", "pytorch_optimizer:AvaGrad"
    ),
    "bcos": Entry(
        "block coordinate optimal step sizes (Jiang and Xiao 2025, arXiv:2507.08963)", "pytorch_optimizer:BCOS"
    ),
    "came": Entry(
        "Adafactor weighted by its own confidence (Luo et al. 2023, arXiv:2307.02047)", "pytorch_optimizer:CAME"
    ),
    "conda": Entry(
        "Adam in the singular vectors of its momentum (Wang et al. 2025, arXiv:2509.24218)", "pytorch_optimizer:Conda"
    ),
    "dash": Entry(
        "Shampoo with batched blocks and faster inverse roots (2026, arXiv:2602.02016)", "pytorch_optimizer:DASH"
    ),
    "diffgrad": Entry(
        "Adam that slows where gradients stop changing (Dubey et al. 2019, arXiv:1909.11015)",
        "pytorch_optimizer:DiffGrad",
    ),
    "dualadam": Entry(
        "Adam that turns into its inverse counterpart (2026, arXiv:2603.07122)", "pytorch_optimizer:DualAdam"
    ),
    "exadam": Entry("Adam whose moments correct each other (Adly 2024, arXiv:2412.20302)", "pytorch_optimizer:EXAdam"),
    "fadam": Entry(
        "Adam as natural gradient over the diagonal Fisher (Hwang 2024, arXiv:2405.12807)", "pytorch_optimizer:FAdam"
    ),
    "flashadamw": Entry("AdamW with moments in 8 bits (2026, arXiv:2602.23349)", "pytorch_optimizer:FlashAdamW"),
    "focus": Entry(
        "signs, drawn to the moving average of the weights (2025, arXiv:2501.12243)", "pytorch_optimizer:FOCUS"
    ),
    "grams": Entry(
        "the direction of the gradient, the size of Adam's step (Cao et al. 2024, arXiv:2412.17107)",
        "pytorch_optimizer:Grams",
    ),
    "grokfastadamw": Entry(
        "AdamW that amplifies slow gradients (Lee et al. 2024, arXiv:2405.20233)", "pytorch_optimizer:GrokFastAdamW"
    ),
    "kate": Entry(
        "scale-invariant AdaGrad without the square root (Choudhury et al. 2024, arXiv:2403.02648)",
        "pytorch_optimizer:Kate",
    ),
    "kron": Entry("PSGD with Kronecker factors (Li 2015, arXiv:1512.04202)", "pytorch_optimizer:Kron"),
    "lamb": Entry(
        "Adam with a trust ratio for each tensor (You et al. 2020, arXiv:1904.00962)", "pytorch_optimizer:Lamb"
    ),
    "laprop": Entry(
        "momentum of normalised gradients (Ziyin et al. 2020, arXiv:2002.04839)", "pytorch_optimizer:LaProp"
    ),
    "lars": Entry(
        "SGD with a trust ratio for each tensor; decay in the gradient (You et al. 2017, arXiv:1708.03888)",
        "pytorch_optimizer:LARS",
    ),
    "lion": Entry(
        "the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675)", "pytorch_optimizer:Lion"
    ),
    "madgrad": Entry(
        "dual averages of AdaGrad with momentum (Defazio and Jelassi 2021, arXiv:2101.11075)",
        "pytorch_optimizer:MADGRAD",
    ),
    "mars": Entry(
        "AdamW with reduced variance (Yuan et al. 2024, arXiv:2411.10438)",
        "pytorch_optimizer:MARS",
        {"optimize_1d": True},
    ),
    "muon": Entry(
        "orthogonalised momentum for matrices, AdamW for the rest (Jordan et al. 2024)",
        "pytorch_optimizer:Muon",
        _MOONLIGHT,
    ),
    "normuon": Entry(
        "Muon with one second moment for each neuron (Li et al. 2025, arXiv:2510.05491)",
        "pytorch_optimizer:NorMuon",
        _MOONLIGHT,
    ),
    "novograd": Entry(
        "Adam with one second moment for each tensor (Ginsburg et al. 2019, arXiv:1905.11286)",
        "pytorch_optimizer:NovoGrad",
    ),
    "padam": Entry(
        "Adam with a smaller power of the second moment (Chen et al. 2018, arXiv:1806.06763)", "pytorch_optimizer:PAdam"
    ),
    "pid": Entry(
        "proportional, integral and derivative control of gradients (An et al. 2018)", "pytorch_optimizer:PID"
    ),
    "pnm": Entry("positive-negative momentum (Xie et al. 2021, arXiv:2103.17182)", "pytorch_optimizer:PNM"),
    "prodigy": Entry(
        "Adam that finds its own step size; lr is a factor, 1 (Mishchenko and Defazio 2023, arXiv:2306.06101)",
        "pytorch_optimizer:Prodigy",
        one_lr=True,
    ),
    "qhadam": Entry("quasi-hyperbolic Adam (Ma and Yarats 2019, arXiv:1810.06801)", "pytorch_optimizer:QHAdam"),
    "qhm": Entry("quasi-hyperbolic momentum (Ma and Yarats 2019, arXiv:1810.06801)", "pytorch_optimizer:QHM"),
    "racs": Entry("row and column scaled SGD (Gong et al. 2025, arXiv:2502.07752)", "pytorch_optimizer:RACS"),
    "ranger": Entry("RAdam with lookahead and centred gradients (Wright 2019)", "pytorch_optimizer:Ranger"),
    "scalableshampoo": Entry(
        "Shampoo in blocks, with grafting (Anil et al. 2020, arXiv:2002.09018)", "pytorch_optimizer:ScalableShampoo"
    ),
    "schedulefreeadamw": Entry(
        "AdamW that averages in place of a schedule (Defazio et al. 2024, arXiv:2405.15682)",
        "pytorch_optimizer:ScheduleFreeAdamW",
    ),
    "schedulefreeradam": Entry(
        "RAdam that averages in place of a schedule (Defazio et al. 2024, arXiv:2405.15682)",
        "pytorch_optimizer:ScheduleFreeRAdam",
    ),
    "schedulefreesgd": Entry(
        "SGD that averages in place of a schedule (Defazio et al. 2024, arXiv:2405.15682)",
        "pytorch_optimizer:ScheduleFreeSGD",
    ),
    "scion": Entry(
        "steepest descent in norms of operators, with momentum (Pethick et al. 2025, arXiv:2502.07529)",
        "pytorch_optimizer:SCION",
    ),
    "scionlight": Entry(
        "Scion that keeps momentum in the gradients (Pethick et al. 2025, arXiv:2502.07529)",
        "pytorch_optimizer:SCIONLight",
    ),
    "sgdp": Entry(
        "SGD without the part along scale-invariant weights (Heo et al. 2021, arXiv:2006.08217)",
        "pytorch_optimizer:SGDP",
    ),
    "sgdsai": Entry(
        "SGD with step sizes set at the first step (Xu et al. 2024, arXiv:2412.11768)", "pytorch_optimizer:SGDSaI"
    ),
    "sgdw": Entry(
        "SGD with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)",
        "pytorch_optimizer:SGDW",
        {"momentum": 0.9},
    ),
    "shampoo": Entry(
        "a preconditioner for each axis (Gupta et al. 2018, arXiv:1802.09568)", "pytorch_optimizer:Shampoo"
    ),
    "signsgd": Entry("the sign of momentum (Bernstein et al. 2018, arXiv:1802.04434)", "pytorch_optimizer:SignSGD"),
    "simplifiedademamix": Entry(
        "AdEMAMix with one first moment (Morwani et al. 2025, arXiv:2502.02431)", "pytorch_optimizer:SimplifiedAdEMAMix"
    ),
    "soap": Entry("Adam in the eigenvectors of Shampoo (Vyas et al. 2024, arXiv:2409.11321)", "pytorch_optimizer:SOAP"),
    "splus": Entry(
        "sign descent in the eigenvectors of Shampoo (Frans et al. 2025, arXiv:2506.07254)", "pytorch_optimizer:SPlus"
    ),
    "stableadamw": Entry(
        "AdamW with clipped updates (Wortsman et al. 2023, arXiv:2304.13013)", "pytorch_optimizer:StableAdamW"
    ),
    "stablespam": Entry(
        "SPAM with adaptive clipping (Huang et al. 2025, arXiv:2502.17055)", "pytorch_optimizer:StableSPAM"
    ),
    "swats": Entry("Adam that turns into SGD (Keskar and Socher 2017, arXiv:1712.07628)", "pytorch_optimizer:SWATS"),
    "tam": Entry("torque-aware momentum (Malviya et al. 2024, arXiv:2412.18790)", "pytorch_optimizer:TAM"),
    "tiger": Entry("the sign of momentum, sparing with memory (Su 2023)", "pytorch_optimizer:Tiger"),
    "vsgd": Entry("gradients as variational inference (Chen et al. 2024)", "pytorch_optimizer:VSGD"),
    "yogi": Entry("Adam whose second moment moves by signs (Zaheer et al. 2018)", "pytorch_optimizer:Yogi"),
}
