from .episodes import (
    CORPUS as CORPUS,
    Decision as Decision,
    Episode as Episode,
    Step as Step,
    load_corpus as load_corpus,
    sample_decisions as sample_decisions,
    save_episodes as save_episodes,
)
