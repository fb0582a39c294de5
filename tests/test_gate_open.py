"""What the engine does stand in for: the network however it was made, loaded, copied, moved, adapted and restored."""

import copy
import pickle

import accelerate
import kinds
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.models.attention_processor import AttnProcessor
from oracle import assert_close, noise
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from temporal_vae import AutoencoderKLTemporalDecoder as Ours

FRAMES, LATENTS = noise(2, 3, 16, 16), noise(2, 4, 4, 6)
ENGINE = 2e-5  # how far the engine may be from the modules, of the output's scale


@pytest.fixture(scope="module", params=[*kinds.KINDS, "AutoencoderKLFlux2"])
def as_built(request):
    return kinds.pair(request.param)


@pytest.fixture
def models(as_built):
    return copy.deepcopy(as_built)


@pytest.fixture
def ours(models):
    return models[0]


def both(model):
    parameter = next(model.parameters())
    return kinds.encode(model, FRAMES.to(parameter)), kinds.decode(model, LATENTS.to(parameter))


def loaded(ours, theirs, tmp_path):
    ours.save_pretrained(tmp_path)
    return type(ours).from_pretrained(tmp_path)


def mapped(ours, theirs, tmp_path):
    ours.save_pretrained(tmp_path)
    return type(ours).from_pretrained(tmp_path, device_map={"": "cpu"}, low_cpu_mem_usage=True)


def single_file(ours, theirs, tmp_path):
    from temporal_vae.checkpoints.convert import save_single_file

    save_single_file(ours, tmp_path / "one.safetensors")
    return type(ours).from_single_file(tmp_path / "one.safetensors")


def fused(ours, theirs, tmp_path):
    ours.fuse_qkv_projections()
    return ours


def unfused(ours, theirs, tmp_path):
    ours.fuse_qkv_projections()
    ours.unfuse_qkv_projections()
    return ours


def processed(ours, theirs, tmp_path):
    ours.set_attn_processor(AttnProcessor())
    return ours


def merged(ours, theirs, tmp_path):
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=2, target_modules=r".*conv[12]|.*\.to_[qv]", init_lora_weights=False)
    return peft.get_peft_model(ours, options).merge_and_unload()


def unhooked(ours, theirs, tmp_path):
    for module in ours.modules():
        module.register_forward_hook(lambda *_: None).remove()
        add_hook_to_module(module, ModelHook())
    return remove_hook_from_module(ours, recurse=True)


def offloaded(ours, theirs, tmp_path):
    return accelerate.cpu_offload_with_hook(ours, execution_device="cpu")[0]


def normed_and_back(ours, theirs, tmp_path):
    # Both put the weight behind the bias.
    prune.l1_unstructured(ours.decoder.conv_in, "weight", 0.2)
    prune.remove(ours.decoder.conv_in, "weight")
    parametrizations.weight_norm(ours.encoder.conv_in)
    with torch.enable_grad():  # or it would be no parameter again
        parametrize.remove_parametrizations(ours.encoder.conv_in, "weight")
    return ours


def channels_last(ours, theirs, tmp_path):
    for module in ours.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    assert not ours.decoder.conv_in.weight.is_contiguous()
    return ours


def shared(ours, theirs, tmp_path):
    first, second = (ours.decoder.up_blocks[0].resnets[i] for i in (0, 1))
    if kinds.length(ours):
        first, second = first.temporal_res_block, second.temporal_res_block
    first.conv1.weight = second.conv1.weight
    return ours


def replaced_by_its_like(ours, theirs, tmp_path):
    old = ours.decoder.conv_out
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1)
    new.load_state_dict(old.state_dict())
    ours.decoder.conv_out = new
    return ours


def labelled(ours, theirs, tmp_path):
    for name, module in ours.named_modules():
        module.lora_name = module._name_of_somebody = name
        module.requires_grad_(False).train()
    ours.enable_gradient_checkpointing()
    return ours


def swapped(ours, theirs, tmp_path):
    ours.encoder, ours.decoder = copy.deepcopy(ours.encoder), copy.deepcopy(ours.decoder)
    ours.quant_conv = copy.deepcopy(ours.quant_conv)
    return ours


def meta_first(ours, theirs, tmp_path):
    with torch.device("meta"):
        model = type(ours).from_config(ours.config)
    model.load_state_dict(ours.state_dict(), assign=True)
    return model.eval()


WAYS = {
    "built": lambda ours, theirs, _: ours,
    "loaded": loaded,
    "loaded with a map": mapped,
    "single file": single_file,
    "from a module": lambda ours, theirs, _: type(ours).from_module(theirs),
    "meta first": meta_first,
    "float64": lambda ours, theirs, _: ours.to(torch.float64),
    "bfloat16": lambda ours, theirs, _: ours.to(torch.bfloat16),
    "copied": lambda ours, theirs, _: copy.deepcopy(ours),
    "pickled": lambda ours, theirs, _: pickle.loads(pickle.dumps(ours)),
    "channels last": channels_last,
    "fused": fused,
    "unfused": unfused,
    "another processor": processed,
    "merged": merged,
    "unhooked": unhooked,
    "offloaded": offloaded,
    "pruned and normed": normed_and_back,
    "shared weights": shared,
    "replaced by its like": replaced_by_its_like,
    "labelled": labelled,
    "parts swapped": swapped,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_goes_through_the_engine(models, by_engine, caplog, tmp_path, way):
    model = way(*models, tmp_path)
    found = both(model)
    assert by_engine == {"encode": 1, "decode": 1}
    x, z = FRAMES.to(found[0].dtype), LATENTS.to(found[0].dtype)
    if x.dtype != torch.bfloat16:
        assert_close(found[0], kinds.encode_by_modules(model, x), ENGINE)
        assert_close(found[1], kinds.decode_by_modules(model, z), ENGINE)
    assert not [line for line in caplog.messages if line.startswith(("encode:", "decode:"))]


@torch.no_grad()
def test_the_embedded_model(by_engine):
    ours = Ours.from_embedded()
    ours.decode(ours.encode(FRAMES).latent_dist.mode(), num_frames=2)
    assert by_engine == {"encode": 1, "decode": 1}


def test_frozen_weights_in_grad_mode(ours, by_engine):
    ours.requires_grad_(False)
    expected = both(ours)
    assert by_engine == {"encode": 1, "decode": 1}
    ours.enable_gradient_checkpointing()
    assert torch.equal(both(ours)[1], expected[1])
    ours.set_attn_processor(AttnProcessor())  # one that might hold weights of its own
    assert_close(both(ours)[1], expected[1], ENGINE)
    assert by_engine == {"encode": 2, "decode": 2}


@pytest.mark.parametrize("device", ["meta", "cuda", "cpu"])
@torch.no_grad()
def test_default_device(ours, by_engine, device):
    expected = both(ours)
    with torch.device(device):
        for workers in (1, 2):
            threads = torch.get_num_threads()
            torch.set_num_threads(workers)
            assert_close(kinds.decode(ours, LATENTS), expected[1], ENGINE)
            assert_close(ours.encode(FRAMES).latent_dist.parameters, expected[0], ENGINE)
            torch.set_num_threads(threads)
        assert by_engine == {"encode": 3, "decode": 3}
        ours.set_attn_processor(AttnProcessor())
        assert_close(kinds.decode(ours, LATENTS), expected[1], ENGINE)
        assert by_engine["decode"] == 3


@torch.no_grad()
def test_inference_tensors_and_parameters(ours, by_engine):
    with torch.inference_mode():
        z = LATENTS.clone()
    kinds.decode(ours, z)
    found = kinds.decode(ours, nn.Parameter(LATENTS))
    assert type(found) is torch.Tensor
    assert by_engine["decode"] == 2


@torch.no_grad()
def test_other_weights_for_one_call(ours, by_engine):
    other, length = kinds.pair(type(ours).__name__, seed=3)[0], kinds.length(ours)
    weights = {name: parameter.detach().clone() for name, parameter in other.named_parameters()}
    found = torch.func.functional_call(ours, weights, (FRAMES,), length).sample
    assert torch.equal(found, other(FRAMES, **length).sample)
    assert not torch.equal(found, ours(FRAMES, **length).sample)
    assert by_engine == {"encode": 3, "decode": 3}


@torch.no_grad()
def test_the_look_takes_no_random_number():
    torch.manual_seed(4)
    expected = torch.randn(3)
    torch.manual_seed(4)
    ours = Ours(down_block_types=("DownEncoderBlock2D",), block_out_channels=(160,)).eval()
    torch.manual_seed(4)
    ours.decode(torch.zeros(1, 4, 4, 4), num_frames=1)
    assert torch.equal(torch.randn(3), expected)
