"""One YAML a run: frozen, validated sections in the order of the data's flow. Loads no torch.

::

    YAML, --set ──load_config (load.py)──→ RunConfig (run.py), frozen, or all problems at once
                                             └ data, model, objective, training, safety
    profile ──→ ClusterConfig (cluster_profile.py), or all problems at once

``plan_batches`` (data.py) divides a step's windows among ranks and passes. A section is a
``Section`` (base.py); the docstrings of its fields are the table in
docs/configuration.md. The first call to read is ``load_config``.
"""

from lmscale.config.data import BatchPlan, plan_batches
from lmscale.config.load import dump_config, load_config, parse_config
from lmscale.config.run import RunConfig

__all__ = ["BatchPlan", "RunConfig", "dump_config", "load_config", "parse_config", "plan_batches"]
