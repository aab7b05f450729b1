"""Mixtures of experts from dense models: what all share is kept once, each model's MLPs become an expert.

    recipe ─▶ open models ─▶ layout (which checkpoint it becomes) ─▶ routers ─▶ pieces ─▶ engine, proof, card, rename

    y = sum over the k most likely experts e of  p_e / (sum of these p) * MLP_e(x),      p = softmax(R x)

Where all MLPs are the same this is the dense model again, whatever the routers R are. The recipe is mergekit-moe's. An
expert may be BASE+ADAPTER, so that adapters over one base become a mixture; what an adapter changes outside the MLPs is
shared by all experts and therefore refused, or averaged (Sukhbaatar et al., Branch-Train-MiX, arXiv:2403.07816).
Komatsuzaki et al. (sparse upcycling), arXiv:2212.05055; Jiang et al. (Mixtral), arXiv:2401.04088.
"""
