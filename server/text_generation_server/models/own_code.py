"""OwnCode: a decoder whose folder brings the Python files that define it (`auto_map` in config.json), run as they are.

In: a model folder that a person has said to trust. Out: the contract of models. One rank only: how such a model splits,
nobody has said.
"""

from pathlib import Path

import transformers

from text_generation_server.models.fallback import Fallback
from text_generation_server.models.transformers_loader import TransformersLoader


class OwnCode(Fallback):
    @staticmethod
    def make_loader(folder: Path) -> TransformersLoader:
        """
        Raises:
            ModelError: the code does not define what transformers needs.
        """
        return TransformersLoader(folder, transformers.AutoModelForCausalLM, None, trust_remote_code=True)
