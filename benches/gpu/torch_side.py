#!/usr/bin/env python3
"""PyTorch with transformers at the work of `benches/gpu`: the same shapes on random weights, after the same small model.

    python3 benches/gpu/torch_side.py --shape 7b --model DIR [--device cuda]

`DIR` is what `benches/gpu -- --model DIR` kept: first its log-probabilities are compared.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SHAPES = {
    # width, layers, heads, kv heads, inner, vocabulary; sample, score, train as in benches/gpu/main.rs
    "tiny": ((64, 2, 4, 2, 128, 512), (4, 16, 8), (4, 16, 16), (2, 32)),
    "1b": ((2048, 16, 32, 8, 8192, 32000), (128, 128, 64), (16, 1024, 1024), (8, 2048)),
    "7b": ((4096, 32, 32, 8, 14336, 32000), (128, 128, 64), (16, 1024, 1024), (4, 2048)),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", choices=SHAPES, default="tiny")
parser.add_argument("--model")
parser.add_argument("--device", default="cuda")
parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
arguments = parser.parse_args()
device = torch.device(arguments.device)
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[arguments.dtype]


def logprobs(model, ids, prompt, keep):
    logits = model(input_ids=ids, logits_to_keep=keep + 1).logits[:, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, prompt:, None])[..., 0]


def seconds(work, times=1):
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


if arguments.model:
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(device)
    with open(f"{arguments.model}/scored.json") as file:
        scored = json.load(file)
    apart = 0.0
    with torch.inference_mode():
        for row, theirs in zip(scored["rows"], scored["logprobs"]):
            ids = torch.tensor([row["ids"]], device=device)
            ours = logprobs(model, ids, row["prompt"], ids.shape[1] - row["prompt"])[0].cpu()
            apart = max(apart, (ours - torch.tensor(theirs)).abs().max().item())
    print(f"numbers against PyTorch's, f32: log-probabilities {apart:.1e} apart")
    del model

(width, layers, heads, kv_heads, inner, vocabulary), sample, score, train = SHAPES[arguments.shape]
config = LlamaConfig(
    hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
    intermediate_size=inner, vocab_size=vocabulary, max_position_embeddings=4096, rms_norm_eps=1e-5,
    tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=0,
)
torch.set_default_dtype(dtype)
with device:
    model = LlamaForCausalLM(config).eval()
torch.set_default_dtype(torch.float32)
print(f"PyTorch {torch.__version__}\n\n| {arguments.shape}, {arguments.dtype} | tokens/s | s |\n|---|---|---|")


def line(what, tokens, took):
    print(f"| {what} | {tokens / took:.0f} | {took:.3f} |", flush=True)


rows, prompt, new = sample
ids = torch.randint(vocabulary, (rows, prompt), device=device)
with torch.inference_mode():
    def generate(count):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False)

    line(f"sample {new} tokens, {rows} rows after {prompt}", rows * new, seconds(lambda: generate(new + 1)) - seconds(lambda: generate(1)))
    rows, prompt, response = score
    ids = torch.randint(vocabulary, (rows, prompt + response), device=device)
    once = lambda: [logprobs(model, ids[at : at + 4], prompt, response) for at in range(0, rows, 4)]
    line(f"score {rows} of {prompt} + {response} tokens", rows * (prompt + response), seconds(once))

rows, length = train
ids = torch.randint(vocabulary, (rows, length), device=device)
model.train()
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
# Masters in f32, as there: the model's weights are copies of what the optimiser changes.
masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
optimizer = torch.optim.AdamW(masters, lr=1e-5, weight_decay=0.0, fused=device.type == "cuda")


def step():
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, vocabulary).float(), ids[:, 1:].reshape(-1)).backward()
    for master, parameter in zip(masters, model.parameters()):
        master.grad, parameter.grad = parameter.grad.float(), None
    optimizer.step()
    with torch.no_grad():
        for master, parameter in zip(masters, model.parameters()):
            parameter.copy_(master)
            master.grad = None


line(f"train on {rows} × {length}, layers made again", rows * length, seconds(step))
if device.type == "cuda":
    print(f"\npeak of memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
