"""PyTorch and transformers at the work of `benches/lm`: one process, one case, one choice of settings.

    python torch_peer.py WORK.json SETTINGS.json

Does the work once to warm up, prints `ready`, then once more for every line it reads, each time printing seconds and what
was computed; at the end of its input the peak of its memory. `benches/lm` says what is in the two files.
"""

import json
import math
import os
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

transformers.logging.set_verbosity_error()


def padded(rows, left=False):
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
        ids[row, place], mask[row, place] = torch.tensor(tokens), 1
    return ids, mask


def logprob_sums(model, sequences):
    """The sum of each response's log-probabilities, the way the trainer of SAMI's authors computes it."""
    ids, mask = padded([sequence["ids"] for sequence in sequences])
    # Without padding no mask is needed, which is faster.
    logits = model(input_ids=ids, attention_mask=None if mask.all() else mask).logits
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    response = torch.zeros_like(mask)
    for row, sequence in enumerate(sequences):
        response[row, sequence["prompt"] : len(sequence["ids"])] = 1
    return (logprobs * response[:, 1:]).sum(-1), response[:, 1:].sum(-1)


def score(model, work, settings):
    sequences = [sequence for example in work["examples"] for sequence in example]
    size = settings["batch"] or len(sequences)

    def once():
        with torch.inference_mode():
            sums = [logprob_sums(model, sequences[at : at + size])[0] for at in range(0, len(sequences), size)]
            return torch.cat(sums).sum().item()

    return once


def sami_loss(model, examples):
    """Cross-entropy of the C by C matrices both ways, log-probabilities a token; the mean over examples."""
    sums, lengths = logprob_sums(model, [sequence for example in examples for sequence in example])
    side = math.isqrt(len(examples[0]))
    matrix = (sums / lengths).view(len(examples), side, side)
    rows = -torch.log_softmax(matrix, -1).diagonal(dim1=1, dim2=2).mean(-1)
    columns = -torch.log_softmax(matrix, -2).diagonal(dim1=1, dim2=2).mean(-1)
    return ((rows + columns) / 2).sum()


def text_loss(model, examples):
    ids, _ = padded([example[0]["ids"] for example in examples])
    logits = model(input_ids=ids).logits[:, :-1]
    mean = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    return mean * len(examples)


def train(model, work, settings):
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=work["learning_rate"], weight_decay=0.0, **{settings["optimizer"]: True}
    )
    loss_of = text_loss if work["kind"] == "text" else sami_loss
    examples = work["examples"]
    size = settings["examples"] or len(examples)

    def once():
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for at in range(0, len(examples), size):
            loss = loss_of(model, examples[at : at + size]) / len(examples)
            loss.backward()
            total += loss.item()
        optimizer.step()
        return total

    return once


def sample(model, work, settings):
    prompts, prefix = work["prompts"], work["prefix"]
    size = settings["batch"] or len(prompts)
    new = {"max_new_tokens": work["new_tokens"], "min_new_tokens": work["new_tokens"], "do_sample": False, "pad_token_id": 0}

    def once():
        tokens = []
        with torch.inference_mode():
            cache = None
            if settings.get("prefix") == "copied":
                cache = DynamicCache(config=model.config)
                model(input_ids=torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
                states = [(layer.keys, layer.values) for layer in cache.layers]
            for at in range(0, len(prompts), size):
                rows = prompts[at : at + size]
                past = None
                if cache is None:
                    ids, mask = padded([prefix + row for row in rows], left=True)
                else:
                    own, own_mask = padded(rows, left=True)
                    shared = torch.tensor([prefix]).expand(len(rows), -1)
                    ids, mask = torch.cat([shared, own], 1), torch.cat([torch.ones_like(shared), own_mask], 1)
                    past = DynamicCache(config=model.config)
                    for index, (keys, values) in enumerate(states):
                        past.update(
                            keys.expand(len(rows), -1, -1, -1).contiguous(),
                            values.expand(len(rows), -1, -1, -1).contiguous(),
                            index,
                        )
                out = model.generate(input_ids=ids, attention_mask=mask, past_key_values=past, **new)
                tokens += out[:, ids.shape[1] :].tolist()
        return tokens

    return once


def main():
    work, settings = (json.load(open(path)) for path in sys.argv[1:3])
    torch.set_num_threads(work["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        work["model"], dtype=torch.float32, attn_implementation=settings["attention"]
    )
    model.eval()
    once = {"score": score, "sami": train, "text": train, "sample": sample}[work["kind"]](model, work, settings)
    first = once()
    print(json.dumps({"ready": f"PyTorch {torch.__version__}, transformers {transformers.__version__}", "result": first}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = once()
        print(json.dumps({"seconds": time.perf_counter() - start, "result": result}), flush=True)
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    print(json.dumps({"peak_kib": int(peak.split()[1])}), flush=True)
    # The library's threads need not be waited for.
    os._exit(0)


main()
