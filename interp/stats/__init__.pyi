from .intervals import (
    Estimate as Estimate,
)
from .intervals import (
    cluster_bootstrap as cluster_bootstrap,
)
from .intervals import (
    headroom_gap as headroom_gap,
)
from .intervals import (
    holm as holm,
)
from .intervals import (
    kappa as kappa,
)
from .intervals import (
    mcnemar as mcnemar,
)
from .intervals import (
    wilson as wilson,
)
