"""diffusers' features work on the transformer, and its files are Wan's."""

import json
import logging

import pytest
import torch
from diffusers import FirstBlockCacheConfig, ModelMixin, WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from peft import LoraConfig

from pixeldance.models.transformer import PixelDanceTransformer3DModel

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 8,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PixelDanceTransformer3DModel(**TINY).eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 8, 3, 4, 6),
        "timestep": torch.tensor([300.0, 912.5]),
        "encoder_hidden_states": torch.randn(2, 9, 20),
    }


@pytest.fixture
def velocity(model, inputs):
    """What the model says before a feature is switched on."""
    with torch.no_grad():
        return model(**inputs).sample


def prepared(model, inputs):
    """The same inputs with a prepared context in place of the text."""
    text = inputs["encoder_hidden_states"]
    rest = {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}
    return rest | {"context": model.prepare_context(text)}


# --- files


def test_saved_model_is_read_back_bitwise(model, inputs, velocity, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = PixelDanceTransformer3DModel.from_pretrained(tmp_path)
    assert loaded.config.num_layers == TINY["num_layers"]
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).sample, velocity)


def test_stock_diffusers_reads_our_folder(model, inputs, velocity, tmp_path):
    model.save_pretrained(tmp_path)
    stock = WanTransformer3DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).sample, velocity, rtol=0, atol=1e-5)


def test_we_read_a_folder_of_stock_diffusers(inputs, tmp_path):
    torch.manual_seed(2)
    stock = WanTransformer3DModel(**TINY).eval()
    stock.save_pretrained(tmp_path)
    ours = PixelDanceTransformer3DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).sample, stock(**inputs).sample, rtol=0, atol=1e-5)


def test_configuration_has_wans_keys_and_defaults(model):
    def entries(config):
        return {name: value for name, value in config.items() if not name.startswith("_")}

    with torch.device("meta"):
        shape = {"num_layers": 1, "num_attention_heads": 1}
        ours = PixelDanceTransformer3DModel(**shape)
        stock = WanTransformer3DModel(**shape)
    assert entries(ours.config) == entries(stock.config)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert json.loads(model.to_json_string())["_class_name"] == "PixelDanceTransformer3DModel"


def test_half_precision_keeps_delicate_weights_in_float32(model, inputs, velocity, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = PixelDanceTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    in_float32 = {name for name, weight in loaded.named_parameters() if weight.dtype.itemsize == 4}
    stock = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert in_float32 == {n for n, weight in stock.named_parameters() if weight.dtype.itemsize == 4}
    with torch.no_grad():
        halves = {name: value.bfloat16() for name, value in inputs.items()}
        actual = loaded(**halves | {"timestep": inputs["timestep"]}).sample
    assert actual.dtype == torch.bfloat16
    assert (actual - velocity).std() < 0.03 * velocity.std()


# --- training


def test_gradient_checkpointing_gives_the_same_gradients(model, inputs):
    def gradients(arguments):
        model.zero_grad()
        model(**arguments).sample.square().sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    expected = gradients(inputs)
    model.enable_gradient_checkpointing()
    runs = []
    model.blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    torch.testing.assert_close(gradients(inputs), expected)
    assert len(runs) == 2  # once more in the backward pass
    torch.testing.assert_close(gradients(prepared(model, inputs)), expected, rtol=1e-4, atol=1e-5)


def test_lora_is_added_saved_loaded_scaled_and_disabled(model, inputs, velocity, tmp_path):
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with torch.no_grad():
        changed = model(**inputs).sample
        in_context = model(**prepared(model, inputs)).sample
    assert not torch.allclose(changed, velocity, atol=1e-3)
    torch.testing.assert_close(in_context, changed, rtol=0, atol=1e-5)

    model.save_lora_adapter(tmp_path)
    torch.manual_seed(0)
    other = PixelDanceTransformer3DModel(**TINY).eval()
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    with torch.no_grad():
        torch.testing.assert_close(other(**inputs).sample, changed, rtol=0, atol=1e-5)
        unscaled = other(**inputs, attention_kwargs={"scale": 0.0}).sample
        torch.testing.assert_close(unscaled, velocity, rtol=0, atol=1e-5)
        other.disable_lora()
        torch.testing.assert_close(other(**inputs).sample, velocity, rtol=0, atol=1e-5)


def test_lora_scale_reaches_the_prepared_context(model, inputs):
    model.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False))
    scale = {"attention_kwargs": {"scale": 0.3}}
    text = inputs.pop("encoder_hidden_states")
    with torch.no_grad():
        expected = model(**inputs, encoder_hidden_states=text, **scale).sample
        context = model.prepare_context(text, **scale)
        actual = model(**inputs, context=context, **scale).sample
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("default")  # "error" beats the filter that the compiler sets
def test_blocks_compile_into_one_graph(model, inputs, velocity, monkeypatch):
    # Or pytest keeps every record of the compiler's trace, which takes ten times as long.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(**inputs).sample, velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(**prepared(model, inputs)).sample, velocity, rtol=0, atol=1e-5)


# --- inference


@torch.no_grad()
def test_fused_projections_change_nothing(model, inputs, velocity):
    model.fuse_qkv_projections()
    assert model.blocks[0].attn1.fused_projections
    torch.testing.assert_close(model(**inputs).sample, velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(**prepared(model, inputs)).sample, velocity, rtol=0, atol=1e-5)
    model.unfuse_qkv_projections()
    assert torch.equal(model(**inputs).sample, velocity)


@torch.no_grad()
def test_layerwise_casting_stores_blocks_in_float8(model, inputs, velocity):
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert model.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert model.condition_embedder.time_proj.weight.dtype == torch.float32
    for arguments in (inputs, prepared(model, inputs)):
        actual = model(**arguments).sample
        assert 0 < (actual - velocity).std() < 0.1 * velocity.std()


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@torch.no_grad()
def test_group_offloading_computes_context_inside_forward(model, inputs, velocity, level):
    model.enable_group_offload(
        onload_device="cpu", offload_device="cpu", offload_type=level, num_blocks_per_group=1
    )
    arguments = prepared(model, inputs)
    assert arguments["context"].blocks is None
    torch.testing.assert_close(model(**arguments).sample, velocity, rtol=0, atol=1e-5)


@torch.no_grad()
def test_first_block_cache_skips_blocks_and_keeps_branches_apart(model, inputs, velocity):
    model.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    calls = []
    model.blocks[1].attn1.register_forward_hook(lambda *_: calls.append(1))

    with model.cache_context("cond"):
        assert torch.equal(model(**inputs).sample, velocity)
        cached = model(**inputs).sample
    with model.cache_context("uncond"):
        model(**inputs)

    assert len(calls) == 2
    torch.testing.assert_close(cached, velocity, rtol=0, atol=1e-5)
    model.disable_cache()
    assert torch.equal(model(**inputs).sample, velocity)


@torch.no_grad()
def test_attention_backend_reaches_every_attention(model, inputs, velocity, monkeypatch):
    model.set_attention_backend("_native_math")
    try:
        assert len(model.attn_processors) == 6
        for processor in model.attn_processors.values():
            assert processor._attention_backend == AttentionBackendName._NATIVE_MATH
        torch.testing.assert_close(model(**inputs).sample, velocity, rtol=0, atol=1e-5)
    finally:
        model.set_attention_backend("native")  # diffusers also sets it for the whole process


def test_parallel_plan_names_modules_and_arguments_that_exist(model):
    assert isinstance(model, ModelMixin)
    modules = dict(model.named_modules())
    stock = WanTransformer3DModel._cp_plan
    assert model._cp_plan.keys() == stock.keys() <= modules.keys()
    assert model._cp_plan["proj_out"] == stock["proj_out"]
    angles = model.rope(torch.empty(1, 8, 3, 4, 6))
    plan = model._cp_plan["rope"][0]
    assert (angles.ndim, angles.shape[plan.split_dim]) == (plan.expected_dims, 18)
