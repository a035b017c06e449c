from .hooked import (
    HookedModel as HookedModel,
)
from .hooked import (
    pick_device as pick_device,
)
from .hooked import (
    pick_dtype as pick_dtype,
)
from .hooked import (
    random_twin as random_twin,
)
