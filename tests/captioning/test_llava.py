"""The real LlavaNext classes and bitsandbytes layers, tiny and randomly initialized, on the CPU."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from captioning.collage import collage
from captioning.engines import Failure, Request, llava
from captioning.engines.llava import loading, memory
from configs import common
from lattec_jax.runtime.errors import EngineError
from tests import tiny_llava

PROMPT = "Describe the object in the photo concisely, using less than 20 words."
SIZES = [(60, 60), (1000, 30), (20, 700), (1, 1), (130, 70), (64, 64), (3, 90), (200, 201)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tiny_llava.transformers()
    return tiny_llava.save(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture
def config(checkpoint):
    config = common.get_config()
    config.descriptions.engine = "llava"
    config.descriptions.max_new_tokens = 12
    config.descriptions.llava.model = str(checkpoint)
    config.descriptions.llava.precision = "float32"
    return config


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng([width, height, seed])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def request(number: int, *images: Image.Image) -> Request:
    return Request(str(number), "image", PROMPT, images)


def said(engine, requests) -> dict[str, str | Failure]:
    return {requested.image_id: text for requested, text in engine.describe(iter(requests))}


def test_batches_say_what_single_images_say(config):
    requests = [request(n, image(*size)) for n, size in enumerate(SIZES)]
    config.descriptions.llava.batch_size = 8
    all_at_once = said(llava.load(config), requests)
    config.descriptions.llava.batch_size = 1
    assert said(llava.load(config), requests) == all_at_once
    assert all(isinstance(text, str) for text in all_at_once.values())
    assert len(set(all_at_once.values())) >= 6  # otherwise the images would not count


@pytest.mark.parametrize("precision", ["nf4", "int8", "bfloat16"])
def test_every_precision_describes(config, precision):
    config.descriptions.llava.precision = precision
    config.descriptions.llava.batch_size = 2
    found = said(llava.load(config), [request(n, image(60, 60, n)) for n in range(3)])
    assert len(found) == 3 and all(isinstance(text, str) for text in found.values())


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


def test_the_prompt_is_the_chat_template_and_nothing_is_cut_off(config):
    engine = llava.load(config)
    words = "what is it? " * 300
    requested = Request("long", "image", words.strip(), (image(60, 60),))
    inputs = engine._inputs([requested])
    ids = inputs["input_ids"][0].tolist()
    tokenizer = engine._processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    once = [t for t, before in zip(ids, [None, *ids], strict=False) if t != image_id or before != t]
    text = tokenizer.decode(once, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert text == f"<s>[INST] <image>\n{words.strip()} [/INST]"


@pytest.mark.parametrize("size", [(3000, 30), (30, 3000), (1, 1), (336, 1), (2, 500), (97, 101)])
def test_image_tokens_are_as_many_as_image_features(config, size):
    import torch

    engine = llava.load(config)
    requested = request(0, image(*size))
    inputs = engine._inputs([requested])
    tokens = int((inputs["input_ids"] == engine._model.config.image_token_id).sum())
    with torch.inference_mode():
        features = engine._model.model.get_image_features(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )
    features = getattr(features, "pooler_output", features)
    assert tokens == sum(len(part) for part in features)


def test_groups_are_shown_as_collages(config):
    engine = llava.load(config)
    members = [image(40, 30, n) for n in range(4)]
    (group,) = said(engine, [request(0, *members)]).values()
    (shown,) = said(engine, [request(0, collage(members))]).values()
    assert group == shown


def test_memory_that_runs_out_halves_the_batch(config):
    import torch

    config.descriptions.llava.batch_size = 8
    engine = llava.load(config)
    requests = [request(n, image(60, 60, n)) for n in range(20)]
    expected = said(engine, requests)
    generate, sizes = engine._model.generate, []

    def scarce(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return generate(**inputs)

    engine._model.generate = scarce
    assert said(engine, requests) == expected
    assert engine.batch_size == 2
    assert sizes == [8, 4, *[2] * 10]  # batches that were already prepared are not tried whole

    def none(**inputs):
        raise torch.OutOfMemoryError("out of memory")

    engine._model.generate = none
    found = said(engine, requests[:2])
    assert all("too little memory" in failure.reason for failure in found.values())


def test_one_that_fails_leaves_the_others(config):
    config.descriptions.llava.batch_size = 4
    engine = llava.load(config)
    requests = [request(n, image(60, 60, n)) for n in range(4)]
    long = Request("long", "image", "x " * 5000, (image(60, 60),))
    closed = Image.new("RGB", (8, 8))
    closed.close()
    two = Request("two", "image", "What is <image>?", (image(60, 60),))
    bad = [long, request("closed", closed), two]
    found = said(engine, [*requests[:2], *bad, *requests[2:]])
    assert "more than the model's maximum of 4096" in found.pop("long").reason
    assert "closed image" in found.pop("closed").reason
    assert "2 <image> tokens" in found.pop("two").reason
    assert found == said(engine, requests)

    def broken(**inputs):
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine._model.generate = broken
    with pytest.raises(EngineError, match="the GPU failed"):
        said(engine, requests)


def test_identities(config, checkpoint):
    found = llava.identity(config)
    assert re.fullmatch(r"tiny@[0-9a-f]{12}", found.model)
    assert found.decoding == "float32, greedy, at most 12 new tokens"
    file = checkpoint / "generation_config.json"
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    assert llava.identity(config).model != found.model
    file.write_bytes(content)
    config.descriptions.llava.model = "llava-hf/llava-v1.6-mistral-7b-hf"
    assert llava.identity(config).model == "llava-hf/llava-v1.6-mistral-7b-hf"
    config.descriptions.llava.revision = "abc"
    assert llava.identity(config).model == "llava-hf/llava-v1.6-mistral-7b-hf@abc"


def test_identity_of_a_directory_that_is_not_there(config, tmp_path):
    config.descriptions.llava.model = str(tmp_path / "none")
    with pytest.raises(EngineError, match="there is no directory"):
        llava.identity(config)


def test_processes(config, monkeypatch):
    tiny_llava.transformers()
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert llava.processes(config) == 4
    config.descriptions.llava.device = "cpu"
    assert llava.processes(config) == 1


def changed(config, tmp_path, file, change) -> None:
    """Point the configuration to a copy of the checkpoint in which one file is changed."""
    folder = tmp_path / "changed"
    shutil.copytree(config.descriptions.llava.model, folder)
    change(folder / file)
    config.descriptions.llava.model = str(folder)


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
    changed(config, tmp_path, file, change)
    with pytest.raises(EngineError, match=message):
        llava.load(config)


def test_nothing_but_the_end_is_taken_from_the_checkpoints_generation(config, tmp_path):
    requests = [request(n, image(60, 60, n)) for n in range(3)]
    expected = said(llava.load(config), requests)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "num_beams": 3}
    settings |= {"min_new_tokens": 11, "eos_token_id": [2, 511]}
    changed(
        config, tmp_path, "generation_config.json", lambda p: p.write_text(json.dumps(settings))
    )
    engine = llava.load(config)
    assert engine._model.generation_config.eos_token_id == [2, 511]
    assert said(engine, requests) == expected


def test_a_template_that_writes_the_beginning_itself(config, tmp_path):
    changed(
        config,
        tmp_path,
        "chat_template.jinja",
        lambda path: path.write_text("{{ bos_token }}" + path.read_text()),
    )
    engine = llava.load(config)
    ids = engine._inputs([request(0, image(60, 60))])["input_ids"][0].tolist()
    assert ids.count(1) == 1 and ids[0] == 1


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
def test_a_checkpoint_does_not_choose_its_attention(checkpoint, config, tmp_path, part):
    """transformers would fetch a kernel of that name from the hub."""
    folder = shutil.copytree(checkpoint, tmp_path / "tiny")
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
def test_an_index_names_files_of_its_folder_alone(checkpoint, config, tmp_path, index, message):
    folder = shutil.copytree(checkpoint, tmp_path / "tiny")
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    config.descriptions.llava.model = str(folder)
    with pytest.raises(EngineError, match=message):
        loading.load(config.descriptions.llava, 5)


def test_an_adapter_is_refused(config, checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    adapter = {"base_model_name_or_path": "evil/model", "peft_type": "LORA"}
    (copy / "adapter_config.json").write_text(json.dumps(adapter))
    config.descriptions.llava.model = str(copy)
    with pytest.raises(EngineError, match=r"expected a full checkpoint, found an adapter"):
        llava.load(config)


def test_a_chat_template_that_never_ends_is_refused(config, checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    endless = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    (copy / "chat_template.jinja").write_text(endless)
    config.descriptions.llava.model = str(copy)
    with pytest.raises(EngineError, match=r"chat template such as those .* found a call of range"):
        llava.load(config)
