"""The table at the end of run_all.sh, from results as the scripts write them."""

from pathlib import Path

from utils.files.writing import write_json
from utils.paths import DataPaths
from utils.saes.summary import MODEL, REFUSER, aligned, span, summary


def test_what_was_measured_stands_beside_what_was_published(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    one = {"sae": "x_chat", "trained_on": "chat", "measured_on": "chat", "own": True, "dead": 0.25}
    numbers = {"explained_variance": estimate, "ce_loss_score": estimate, "l0": {"value": 32.0, "low": 32, "high": 32}}
    rows = [{**one, **numbers}, {**one, **numbers, "measured_on": "web", "own": False}]
    write_json(paths.sae_analysis(f"standard_evals_{REFUSER}.json"), {"results": rows})
    cell = {
        "trained_on_model": f"{MODEL} (refuser)",
        "trained_on_data": "chat",
        "cosine": None,
        "corrected_cosine": {"value": 0.61, "low": None, "high": None, "n": 64},
        "max_latent_cosine": 0.2345,
        "saes": [{"random_dictionaries_max_latent_cosine": {"low": 0.14, "high": 0.16}}],
    }
    difference = {"trained_on_model": MODEL, "of": "chat", "minus": "web"}
    difference |= {"corrected_cosine_over_prompts": {"value": 0.02, "low": -0.01, "high": 0.05}}
    difference |= {key: {"value": None} for key in ("cosine_over_saes", "max_latent_cosine_over_saes")}
    published = {"columns": [], "rows": [["chat model", 0.849, 0.596, 0.678, 0.411]]}
    write_json(
        paths.sae_analysis(f"dataset_vs_model_transfer_{REFUSER}.json"),
        {"results": {"cells": [cell], "differences": [difference], "published": published}},
    )
    paths.sae_analysis("dashboard_x.html").write_text("")
    (tmp_path / "times").write_text("12\tfidelity\n30\tSAEs of the stand-in, chat\n")
    text = summary(tmp_path, tmp_path / "times")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "x_chat chat 0.500 [0.400, 0.600] 0.500 [0.400, 0.600] 32.0 25.0%" in lines
    assert not any("web 0.500" in line for line in lines)
    assert f"{MODEL} (refuser) chat undefined 0.610 0.234 0.140 to 0.160" in lines
    assert "published, Qwen1.5-0.5B, chat model LmSys 0.849 0.678" in lines
    assert f"{MODEL} chat - web 0.020 [-0.010, 0.050] undefined undefined" in lines
    assert "SAEs of the stand-in, chat 30" in lines
    assert f"dashboard: {paths.sae_analysis('dashboard_x.html')}" in lines


def test_what_is_missing_is_said_to_be(tmp_path: Path) -> None:
    assert summary(tmp_path, tmp_path / "times").count("(not there)") == 4


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert list(aligned([("a", "b"), ("long", "")])) == ["  a     b", "  long"]
    assert span({"value": 1.0, "low": 0.5, "high": 2.0}, 1) == "1.0 [0.5, 2.0]"
