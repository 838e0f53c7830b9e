"""What can go wrong on a shard, and who can act on it.

    ShardError                  base; its text is one line for a person
    ├── ModelError              the model folder: unknown architecture, missing or broken weights   → exit 1 at start
    ├── ConfigurationError      flags that do not fit the model or the machine                      → exit 1 at start
    ├── StepError               a step that contradicts the shard's state: the driver's mistake     → that step fails
    └── ShardLost               the other ranks are gone or out of step, or this one cannot go on   → this rank exits
"""


class ShardError(Exception):
    pass


class ModelError(ShardError):
    pass


class ConfigurationError(ShardError):
    pass


class StepError(ShardError):
    pass


class ShardLost(ShardError):
    pass
