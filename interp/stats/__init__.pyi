from .intervals import (
    Estimate as Estimate,
    cluster_bootstrap as cluster_bootstrap,
    headroom_gap as headroom_gap,
    holm as holm,
    kappa as kappa,
    mcnemar as mcnemar,
    wilson as wilson,
)
