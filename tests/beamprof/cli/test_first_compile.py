"""Who waits for numba is told so once, wherever numba keeps what it compiled."""

import pytest

from beamprof.cli.first_compile import say_if_first


@pytest.mark.parametrize("elsewhere", [False, True])
def test_it_is_said_until_compiled_code_is_kept(tmp_path, monkeypatch, capsys, elsewhere):
    package = tmp_path / "packaged"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    kept = package / "__pycache__"
    if elsewhere:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
        kept = tmp_path / "cache" / "packaged_0123abcd"
    say_if_first("packaged")
    assert "compiling" in capsys.readouterr().err
    kept.mkdir(parents=True)
    (kept / "loop.nbi").touch()
    say_if_first("packaged")
    assert capsys.readouterr().err == ""
