from pathlib import Path

from lmscale.runtime.extensions import building_extensions, extensions_folder


def test_the_folder_names_the_versions_it_was_built_for(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = extensions_folder()
    assert folder.is_relative_to(tmp_path / "lmscale")
    assert folder.name.startswith("py3") and "-torch2." in folder.name


def test_a_users_own_folder_stands(monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/somewhere")
    assert extensions_folder() == Path("/somewhere")


def test_the_lock_of_a_killed_build_does_not_hang_the_next_one(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "comm").mkdir()
    (tmp_path / "comm" / "lock").touch()
    with building_extensions() as folder:
        assert folder == tmp_path
        assert not (tmp_path / "comm" / "lock").exists()
