from .devices import pick_device as pick_device, pick_dtype as pick_dtype
from .hooked import HookedModel as HookedModel
from .untrained import random_twin as random_twin
