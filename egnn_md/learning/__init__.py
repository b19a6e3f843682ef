"""Active learning: a committee explores, the reference method labels what it disagrees about, and it learns that.

The scheme of L. Zhang et al., Phys. Rev. Mater. 3, 023804 (2019), and of the program DP-GEN (Y. Zhang et al., Comput.
Phys. Commun. 253, 107206, 2020).
"""

from egnn_md.learning.config import LearnConfig, load_learn_config
from egnn_md.learning.loop import LearnResult, learn

__all__ = ["LearnConfig", "LearnResult", "learn", "load_learn_config"]
