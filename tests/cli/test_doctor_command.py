import json

from lmscale.cli.main import main


def test_the_doctor_prints_a_line_for_each_finding(capsys):
    code = main(["doctor"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "→" not in line]
    assert all(line.startswith(("ok ", "problem ")) for line in lines)
    assert code == (2 if any(line.startswith("problem") for line in lines) else 0)


def test_the_doctor_prints_json(capsys):
    main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert {"subject", "is_ok", "found", "advice"} == set(findings[0])
