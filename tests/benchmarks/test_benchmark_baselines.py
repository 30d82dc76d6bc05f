"""The benchmark of baselines has a run of every family, each beside counts that can be asked."""

from __future__ import annotations

from lmscale.config import load_config
from lmscale.config.model import FAMILIES
from lmscale.evaluation.fitting import check_baseline


def test_every_family_has_a_run_on_the_demo_s_data_and_a_baseline_of_its_objective():
    from baselines import CASES, DEMO, plan_settings, render

    demo = load_config(DEMO)
    families = []
    for name, case in CASES.items():
        config = load_config(DEMO, plan_settings(name)[1::2])
        check_baseline(config, case.baseline)
        assert (config.corpus, config.tokenizer) == (demo.corpus, demo.tokenizer)
        assert config.evaluation.sets == demo.evaluation.sets and config.run.name == name
        families.append(config.model.family)
    assert sorted(families) == sorted(FAMILIES.own)
    heads, ruler, row = render([["cell"] * 8]).splitlines()
    assert heads.count("|") == ruler.count("|") == row.count("|") == 9
