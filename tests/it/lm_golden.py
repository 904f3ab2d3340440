"""Makes lm_golden.json: what PyTorch and transformers compute for small models whose weights are a formula.

Ran with torch 2.15.0 and transformers 5.24.0: python tests/it/lm_golden.py > tests/it/lm_golden.json
"""

import json

import numpy
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

FORM = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
CASES = [
    (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2, "head_dim": 14, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 1, "sliding_window": 6}),
]
IDS = [(at * at * 31 + at * 17 + 5) % 61 for at in range(24)]


def weight(index, name, shape):
    at = numpy.arange(int(numpy.prod(shape)), dtype=numpy.int64)
    value = ((at * 7919 + index * 104729) % 2003) / 1001.0 - 1.0
    value = 1.0 + 0.3 * value if len(shape) == 1 else value * 0.4
    return torch.tensor(value.astype(numpy.float32).reshape(shape))


def case(config_class, model_class, extra):
    config = config_class(**FORM, **extra, attn_implementation="eager")
    model = model_class(config)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for index, name in enumerate(sorted(weights)):
            weights[name].copy_(weight(index, name, tuple(weights[name].shape)))
    logits = model(torch.tensor([IDS])).logits[0]
    logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    (-logprobs.mean()).backward()
    return {
        "config": json.loads(config.to_json_string(use_diff=False)),
        "ids": IDS,
        "last_logits": logits[-1].tolist(),
        "logprobs": logprobs.tolist(),
        "gradient_norms": {name: weights[name].grad.norm().item() for name in sorted(weights)},
    }


print(json.dumps([case(*one) for one in CASES]))
