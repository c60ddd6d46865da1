"""Files of weights are found by the name of their model."""

import pytest

from frepro.experiment.weights import find_weights


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("dfformer_s18.pth", "dfformer_s18"),
        ("spanet-mediumX.pth", "spanet_mediumx"),
        ("Ti_pre_checkpoint.pth", "vimf_v1_tiny"),
        ("v2-ti-f-ckp.pth", "vimf_v2_tiny"),
        ("vim_t_midclstok_76p1acc.pth", "vim_tiny"),
        ("convnext_tiny.safetensors", "convnext_tiny"),
    ],
)
def test_a_file_is_found_under_its_published_name(tmp_path, file, model):
    (tmp_path / file).write_bytes(b"weights")
    (tmp_path / f"{file}.sha256").write_text("0  x")  # as written by `frepro weights fetch`
    assert find_weights(str(tmp_path), model).file == tmp_path / file
    assert find_weights(str(tmp_path), "gfformer_s18") is None
