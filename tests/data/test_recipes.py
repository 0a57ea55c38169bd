"""Recipes: text that is on the machine."""

import json

import pytest

from data import prepare, recipes, sources, sources_installed


def test_docstrings():
    source = sources.open_source("docstrings:json")
    texts = [source[index].text for index in range(len(source))]
    assert texts[0].startswith("json\n\nJSON (JavaScript")
    assert f"json.loads\n\n{json.loads.__doc__.splitlines()[0]}" in texts[0]
    assert any("json.decoder.JSONDecoder.raw_decode\n\n" in text for text in texts)
    with pytest.raises(ValueError, match="docstrings:jsom is no package"):
        sources.open_source("docstrings:jsom")


def test_every_module_is_a_document_or_counted(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""What it is for."""\n')
    (package / "plain.py").write_text("x = 1\n")
    (package / "template.py").write_text("import {name}.\n")
    (package / "tests" / "no_library.py").write_text('"""A test."""\n')
    monkeypatch.setattr(sources_installed.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    source = sources.open_source("docstrings:package")
    assert [source[0].text] == ["package\n\nWhat it is for.\n"]
    assert source.counts == {"empty": 1, "not_python": 1}


def test_pydoc_recipe_has_its_licence(tmp_path, capsys):
    assert prepare.main(["--recipe=pydoc", f"--out={tmp_path}/out"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "PSF" in manifest["license"]
    assert manifest["source"] == "pydoc"
    assert manifest["skipped"].keys() == {"sections/too_short", "sections/repeated"}
    assert manifest["noted"].keys() == {"repeated_paragraphs"}
    assert "written" in capsys.readouterr().out


def test_chapters_of_verses():
    verses = "Ge1:1 In the\nGe1:2 And\nGe2:1 Thus\n1Jn1:1 That\n"
    wanted = ["Ge 1\n\n1 In the\n2 And\n", "Ge 2\n\n1 Thus\n", "1Jn 1\n\n1 That\n"]
    assert sources_installed.chapters(verses) == (wanted, 0)
    assert sources_installed.chapters(f"A heading\n\n{verses} \nan end\n") == (wanted, 2)


def test_bible_from_a_program(tmp_path, monkeypatch):
    program = tmp_path / "bible"
    program.write_text("#!/bin/sh\necho 'Ge1:1 In the beginning'\necho; echo 'no verse'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    source = sources.open_source("bible")
    assert source[0].text == "Ge 1\n\n1 In the beginning\n"
    assert source.counts == {"noted/lines_without_verse": 1}
    program.write_text("#!/bin/sh\necho 'no datafile' >&2\nexit 1\n")
    with pytest.raises(ValueError, match="printed no verses: no datafile"):
        sources.open_source("bible")
    monkeypatch.setenv("PATH", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="apt install bible-kjv"):
        sources.open_source("bible")


def test_recipe_of_a_package(tmp_path, monkeypatch):
    folder = tmp_path / "reasoning_gym"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (folder / "data" / "in_the_year_2889.txt").write_text("One.\n\nTwo.\n")
    with pytest.raises(ValueError, match="needs the package reasoning_gym: pip install"):
        recipes.spec_of("verne_2889")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = sources.open_source(recipes.spec_of("verne_2889"))
    assert [source[index].text for index in range(2)] == ["One.", "Two."]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_a_spec_with_a_licence(name):
    recipe = recipes.RECIPES[name]
    parsed = sources.parse(recipe.spec)
    assert recipe.license
    assert parsed.name in sources.SOURCES
