"""One YAML a run: frozen, validated sections in the order of the data's flow. Loads no torch."""

from lmscale.config.batch import BatchPlan, plan_batches
from lmscale.config.load import dump_config, load_config, parse_config
from lmscale.config.run import RunConfig

__all__ = ["BatchPlan", "RunConfig", "dump_config", "load_config", "parse_config", "plan_batches"]
