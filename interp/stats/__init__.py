"""Arrays only: estimates with intervals that respect episodes, and comparisons over games and seeds."""

from interp.system.lazily import exports

_PUBLIC = {
    "Estimate": "intervals",
    "cluster_bootstrap": "intervals",
    "headroom_gap": "intervals",
    "holm": "intervals",
    "kappa": "intervals",
    "mcnemar": "intervals",
    "wilson": "intervals",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
