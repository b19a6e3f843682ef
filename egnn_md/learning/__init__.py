"""Active learning: a committee explores, the reference method labels what it disagrees about, and it learns that."""

from egnn_md.learning.config import LearnConfig, load_learn_config
from egnn_md.learning.loop import LearnResult, learn

__all__ = ["LearnConfig", "LearnResult", "learn", "load_learn_config"]
