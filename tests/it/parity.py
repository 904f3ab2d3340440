"""The other side of parity.rs: what PyTorch and transformers compute for small models.

    python parity.py numbers DIRECTORY…   of models that we made
    python parity.py make DIRECTORY       makes models, a directory for each
    python parity.py train DIRECTORY…     of trainings that we ran

Numbers go to theirs.json, tensors to directories in the form of checkpoints.
"""

import json
import math
import pathlib
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def logprobs(model, ids, prompt):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[prompt - 1 :, 0]


def forward(model, ids, prompt, new):
    """Logits after the last token, log-probabilities of the response, and the likeliest tokens after the prompt."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        start = torch.tensor([ids[:prompt]])
        out = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return {
            "logits": logits.tolist(),
            "logprobs": logprobs(model, ids, prompt).tolist(),
            "greedy": out[0, prompt:].tolist(),
        }


def optimizer(model, settings):
    settings = dict(settings)
    kind = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}[settings.pop("name")]
    return kind(model.parameters(), **settings)


def numbers(directory):
    case = json.load(open(directory / "case.json"))
    model = load(directory / "model")
    theirs = forward(model, case["ids"], case["prompt"], case["new"])
    (directory / "theirs.json").write_text(json.dumps(theirs))
    for name, settings in case["optimizers"].items():
        model = load(directory / "model").train()
        (-logprobs(model, case["ids"], case["prompt"]).mean()).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        optimizer(model, settings).step()
        model.save_pretrained(directory / name)
    # In a checkpoint's form, whose names and shapes may be others than in memory.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(gradients[name])
    model.save_pretrained(directory / "gradient")


SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 12}
MADE = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe-unnormalised": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": False}),
}


def make(directory):
    for seed, (name, (family, extra)) in enumerate(MADE.items()):
        for form, dtype, shards in [("f32", torch.float32, "5GB"), ("bf16-shards", torch.bfloat16, "40KB")]:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **extra))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            place = directory / f"{name}-{form}"
            model.to(dtype).save_pretrained(place / "model", max_shard_size=shards)
            ids = [(at * at * 31 + at * 17 + 5) % 97 for at in range(30)]
            theirs = forward(load(place / "model"), ids, 7, 12)
            (place / "theirs.json").write_text(json.dumps({**theirs, "ids": ids, "prompt": 7}))


def sami_loss(model, queries):
    """As the authors compute it: each of the C by C sequences by itself, the mean log-probability of a token."""
    total = 0.0
    for sequences in queries:
        means = [logprobs(model, sequence["ids"], sequence["prompt"]).mean() for sequence in sequences]
        side = math.isqrt(len(means))
        matrix = torch.stack(means).view(side, side)
        own = torch.arange(side)
        cross = torch.nn.functional.cross_entropy
        total = total + (cross(matrix, own) + cross(matrix.T, own)) / 2
    return total / len(queries)


def dpo_loss(model, reference, queries, beta):
    """Under each constitution its own response is preferred to the other, from what a frozen model says of both."""
    total = 0.0
    for sequences in queries:
        ratios = []
        for sequence in sequences:
            with torch.no_grad():
                before = logprobs(reference, sequence["ids"], sequence["prompt"]).sum()
            ratios.append(logprobs(model, sequence["ids"], sequence["prompt"]).sum() - before)
        margins = torch.stack([ratios[0] - ratios[1], ratios[3] - ratios[2]])
        total = total - torch.nn.functional.logsigmoid(beta * margins).mean()
    return total / len(queries)


def train(directory):
    case = json.load(open(directory / "case.json"))
    model = load(directory / "model").train()
    reference = load(directory / "model").eval()
    steps = optimizer(model, case["optimizer"])
    losses, norms = [], []
    for queries in case["steps"]:
        steps.zero_grad()
        beta = case.get("beta")
        loss = sami_loss(model, queries) if beta is None else dpo_loss(model, reference, queries, beta)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip"]).item())
        steps.step()
        losses.append(loss.item())
    model.save_pretrained(directory / "theirs")
    # What we saved, opened as anybody would.
    first = case["steps"][0][0][0]
    opened = forward(load(directory / "ours"), first["ids"], first["prompt"], 8)
    (directory / "theirs.json").write_text(json.dumps({"losses": losses, "norms": norms, **opened}))


what, directories = sys.argv[1], map(pathlib.Path, sys.argv[2:])
for one in directories:
    {"numbers": numbers, "make": make, "train": train}[what](one)
