from .episodes import (
    CORPUS as CORPUS,
)
from .episodes import (
    Decision as Decision,
)
from .episodes import (
    Episode as Episode,
)
from .episodes import (
    Step as Step,
)
from .episodes import (
    load_corpus as load_corpus,
)
from .episodes import (
    sample_decisions as sample_decisions,
)
from .episodes import (
    save_episodes as save_episodes,
)
