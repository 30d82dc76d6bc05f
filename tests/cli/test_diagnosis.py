import os

import pytest

from lmscale.cli import doctor


def test_everything_is_looked_at_and_a_problem_always_has_advice(tmp_path):
    findings = doctor.diagnose([str(tmp_path / "not" / "there" / "yet")])
    subjects = {finding.subject for finding in findings}
    assert {"python", "cpu", "compiler", "interfaces", "host name", "here", "folder"} <= subjects
    assert all(finding.advice for finding in findings if not finding.is_ok)


@pytest.mark.parametrize(("version", "is_ok"), [((3, 9), False), ((3, 10), True), ((3, 14), False)])
def test_only_tested_pythons_are_ok(version, is_ok):
    assert doctor.check_python(version).is_ok is is_ok


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    finding = doctor.check_compiler()
    assert not finding.is_ok
    assert "a C++ compiler" in finding.found and "g++" in finding.advice


def test_an_interface_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib7")
    finding = next(iter(doctor.check_network()))
    assert not finding.is_ok and "ib7, which is not here" in finding.advice


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    tmp_path.chmod(0o500)
    assert not doctor.check_folder("runs", tmp_path / "runs").is_ok


def test_a_writable_folder_need_not_exist_yet(tmp_path):
    finding = doctor.check_folder("runs", tmp_path / "runs")
    assert "GiB free" in finding.found
    assert not (tmp_path / "runs").exists()
