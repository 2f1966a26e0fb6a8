"""Loading of LLaVA-NeXT: quantization, memory, and checkpoints that are refused."""

from __future__ import annotations

import json
import shutil

import pytest

from captioning.engines import llava
from captioning.engines.llava import loading, memory
from lattec_jax.runtime.errors import EngineError
from tests import tiny_llava


@pytest.fixture
def config(llava_checkpoint):
    return tiny_llava.make_config(llava_checkpoint)


@pytest.mark.parametrize(("precision", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_what_is_quantized(config, precision, kind, monkeypatch):
    config.descriptions.llava.precision = precision
    model, _, _ = loading.load(config.descriptions.llava, 5)
    kinds: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if "Linear" in type(module).__name__:
            part = "lm_head" if name == "lm_head" else name.split(".")[1]
            kinds.setdefault(part, set()).add(type(module).__name__)
    assert kinds == {
        "vision_tower": {"Linear"},
        "multi_modal_projector": {"Linear"},
        "language_model": {kind},
        "lm_head": {"Linear"},
    }
    # With the names of transformers 4 the check has something to find.
    monkeypatch.setattr(
        loading,
        "_quantization",
        lambda precision, dtype: tiny_llava.transformers().BitsAndBytesConfig(
            load_in_4bit=True, llm_int8_skip_modules=["vision_tower", "multi_modal_projector"]
        ),
    )
    with pytest.raises(EngineError, match=r"linear layers, the first model\.vision_tower"):
        loading.load(config.descriptions.llava, 5)


def edit_weights(edit):
    def change(path):
        from safetensors.torch import load_file, save_file

        weights = load_file(path)
        edit(weights, next(name for name in weights if name.endswith("q_proj.weight")))
        save_file(weights, path, metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model.safetensors",
            edit_weights(lambda weights, name: weights.pop(name)),
            r"1 weights are missing and 0 .* the first model\..*q_proj\.weight",
        ),
        (
            "model.safetensors",
            edit_weights(lambda weights, name: weights.update({name: weights[name][:3].clone()})),
            r"0 weights are missing and 1 have another shape",
        ),
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-1000]),
            "cannot be loaded",
        ),
        ("chat_template.jinja", lambda path: path.unlink(), "has no chat template"),
        (
            "config.json",
            lambda path: path.write_text(
                path.read_text().replace("{", '{"quantization_config": {"quant_method": "x"},', 1)
            ),
            "quantized already",
        ),
    ],
)
def test_damaged_checkpoints(config, tmp_path, file, change, message):
    tiny_llava.use_changed_copy(config, tmp_path, file, change)
    with pytest.raises(EngineError, match=message):
        llava.load(config)


def test_memory_of_the_7b():
    config = tiny_llava.of_7b()
    assert sum(memory.count_parameters(config)) == pytest.approx(7.566e9, rel=1e-3)
    assert memory.max_image_tokens(config) == 2928  # 576 + 48 · 49
    table = [line.split() for line in memory.__doc__.splitlines()]
    stated = {line[0]: line[1:] for line in table if line and line[0] in memory.PRECISIONS}
    assert stated.keys() == memory.PRECISIONS.keys()
    for precision, (weights, each) in stated.items():
        found = memory.estimate_memory(config, precision, 77)
        assert float(weights) == round(found.weights / 2**30, 1)
        assert float(each) == round(found.per_description / 2**30, 1)
    # On the CPU all but the quantized layers are float32.
    assert memory.estimate_memory(config, "nf4", 77, "cpu").weights / 2**30 == pytest.approx(
        5.54, 0.01
    )


def test_too_little_memory_says_what_would_fit():
    config = tiny_llava.of_7b()
    gib = 2**30
    memory.check_memory(config, "bfloat16", 77, 40 * gib, "cuda")
    with pytest.raises(EngineError, match=r"bfloat16 needs 15\.\d GiB .* 10\.0 GiB are free.*int8"):
        memory.check_memory(config, "bfloat16", 77, 10 * gib, "cuda")
    with pytest.raises(EngineError, match="precision=nf4 would fit"):
        memory.check_memory(config, "bfloat16", 77, 7 * gib, "cuda")
    with pytest.raises(EngineError, match="not even nf4 would fit"):
        memory.check_memory(config, "nf4", 77, 2 * gib, "cuda")


def test_no_gpu_for_the_7b(config, tmp_path):
    tiny_llava.of_7b().save_pretrained(tmp_path)
    config.descriptions.llava.model = str(tmp_path)
    with pytest.raises(EngineError, match=r"no GPU .*7\.6e9 parameters.*engine=openai.*device=cpu"):
        llava.load(config)


def test_mistakes(config, tmp_path, monkeypatch):
    settings = config.descriptions.llava
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    settings.model = str(tmp_path)
    with pytest.raises(EngineError, match=r"expected a LLaVA-NeXT checkpoint.*found clip"):
        llava.load(config)
    settings.model = str(tmp_path / "none")
    with pytest.raises(EngineError, match="there is no directory"):
        llava.load(config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings.model = "llava-hf/no-such-llava"
    with pytest.raises(EngineError, match=r"'llava-hf/no-such-llava' cannot be loaded.*HF_HOME"):
        llava.load(config)


def test_missing_packages_name_the_extra(config, monkeypatch):
    find = loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest),
    )
    config.descriptions.llava.precision = "nf4"
    with pytest.raises(EngineError, match=r"needs bitsandbytes; install: .*\[captioning\]"):
        llava.load(config)


def test_a_torchvision_that_does_not_fit_torch(config, monkeypatch):
    real = loading.importlib.import_module

    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(loading.importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"torchvision, which cannot be imported \(operator"):
        llava.load(config)


@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
def test_a_checkpoint_does_not_choose_its_attention(llava_checkpoint, config, tmp_path, part):
    """transformers would fetch a kernel of that name from the hub."""
    folder = shutil.copytree(llava_checkpoint, tmp_path / "tiny")
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    kernels = "someone/kernels"
    content["attn_implementation"] = {part: kernels} if part else kernels
    path.write_text(json.dumps(content), encoding="utf-8")
    config.descriptions.llava.model = str(folder)
    with pytest.raises(EngineError, match="asks for the attention 'someone/kernels'"):
        loading.load(config.descriptions.llava, 5)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../other/model.safetensors"}}, "to name files of its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "to name files of its folder"),
        ({"weight_map": {"a": 3}}, "is not an index of weights"),
        ({"weight_map": [1]}, "is not an index of weights"),
        ([], "is not an index of weights"),
        ("[" * 1000, "is not an index of weights"),
    ],
)
def test_an_index_names_files_of_its_folder_alone(
    llava_checkpoint, config, tmp_path, index, message
):
    folder = shutil.copytree(llava_checkpoint, tmp_path / "tiny")
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    config.descriptions.llava.model = str(folder)
    with pytest.raises(EngineError, match=message):
        loading.load(config.descriptions.llava, 5)


def test_an_adapter_is_refused(config, llava_checkpoint, tmp_path):
    copy = shutil.copytree(llava_checkpoint, tmp_path / "copy")
    adapter = {"base_model_name_or_path": "evil/model", "peft_type": "LORA"}
    (copy / "adapter_config.json").write_text(json.dumps(adapter))
    config.descriptions.llava.model = str(copy)
    with pytest.raises(EngineError, match=r"expected a full checkpoint, found an adapter"):
        llava.load(config)


def test_a_chat_template_that_never_ends_is_refused(config, llava_checkpoint, tmp_path):
    copy = shutil.copytree(llava_checkpoint, tmp_path / "copy")
    endless = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    (copy / "chat_template.jinja").write_text(endless)
    config.descriptions.llava.model = str(copy)
    with pytest.raises(EngineError, match=r"chat template such as those .* found a call of range"):
        llava.load(config)
