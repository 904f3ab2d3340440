"""Makes lm_golden.json: what PyTorch and transformers compute for small models whose weights are a formula.

Ran with torch 2.15.0 and transformers 5.24.0: python tests/it/lm_golden.py > tests/it/lm_golden.json
"""

import json
import tempfile
from pathlib import Path

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FORM = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = [
    ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("Llama", {"num_key_value_heads": 2, "head_dim": 14, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("Mistral", {"num_key_value_heads": 1, "sliding_window": 6}),
    ("Llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    ("Llama", {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    ("Mixtral", {"num_key_value_heads": 2, "sliding_window": 9, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ("Qwen3", {"num_key_value_heads": 2, "head_dim": 14, "attention_bias": True}),
    ("Qwen3Moe", {"num_key_value_heads": 2, "head_dim": 14, "moe_intermediate_size": 30, "num_experts": 5, "num_experts_per_tok": 3}),
]
IDS = [(at * at * 31 + at * 17 + 5) % 61 for at in range(24)]


def weight(index, name, shape):
    at = numpy.arange(int(numpy.prod(shape)), dtype=numpy.int64)
    value = ((at * 7919 + index * 104729) % 2003) / 1001.0 - 1.0
    if "norm" in name:
        value = 1.0 + 0.3 * value
    else:
        value = value * (0.3 if len(shape) == 1 else 0.4)
    return torch.tensor(value.astype(numpy.float32).reshape(shape))


def saved(model):
    """The weights by the names that they have in files: a model may hold them otherwise."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(Path(directory) / "model.safetensors")


def case(family, extra):
    config = getattr(transformers, f"{family}Config")(**FORM, **extra)
    with tempfile.TemporaryDirectory() as directory:
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
        path = Path(directory) / "model.safetensors"
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
        weights = {name: weight(index, name, shapes[name]) for index, name in enumerate(sorted(shapes))}
        save_file(weights, path, {"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32)
        written = json.loads((Path(directory) / "config.json").read_text())
    for name, tensor in saved(model).items():
        assert torch.equal(tensor, weights[name]), name
    logits = model(torch.tensor([IDS])).logits[0]
    logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    (-logprobs.mean()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    return {
        "config": written,
        "ids": IDS,
        "last_logits": logits[-1].tolist(),
        "logprobs": logprobs.tolist(),
        "gradient_norms": {name: tensor.norm().item() for name, tensor in sorted(saved(model).items())},
    }


torch.set_num_threads(2)
print(json.dumps([case(*one) for one in CASES]))
