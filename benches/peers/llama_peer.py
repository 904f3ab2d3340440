"""llama.cpp at the work of `benches/lm`: as torch_peer.py, without settings.

    python llama_peer.py WORK.json

The model is written as GGUF in f32 first. A prompt that several sequences begin with is read once. Keys and values are f32, too.
"""

import json
import os
import struct
import sys
import time

import gguf
import llama_cpp as llama
import numpy


def tensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = about["data_offsets"]
                file.seek(start + begin)
                yield name, numpy.frombuffer(file.read(end - begin), numpy.float32).reshape(about["shape"])


def convert(directory, path):
    config = json.load(open(f"{directory}/config.json"))
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads = config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, weight in tensors(f"{directory}/model.safetensors"):
        count = heads if "q_proj" in name else kv_heads if "k_proj" in name else 0
        if count:
            # It turns neighbours where transformers turns halves.
            pairs = weight.reshape(count, 2, weight.shape[0] // count // 2, weight.shape[1])
            weight = numpy.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Model:
    BATCH = 2048

    def __init__(self, path, work, rows, cells):
        self.quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self.quiet, None)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        form = llama.llama_context_default_params()
        form.n_ctx, form.n_seq_max, form.kv_unified = cells, rows, True
        form.n_batch, form.n_ubatch = self.BATCH, 512
        form.n_threads = form.n_threads_batch = work["threads"]
        form.type_k = form.type_v = int(gguf.GGMLQuantizationType.F32)
        self.context = llama.llama_init_from_model(self.model, form)
        self.memory = llama.llama_get_memory(self.context)
        self.vocabulary = json.load(open(f"{work['model']}/config.json"))["vocab_size"]
        self.batch = llama.llama_batch_init(self.BATCH, 0, 1)

    def read(self, tokens):
        """Reads (token, position, row, whether logits are wanted); yields those wanted, in order."""
        for start in range(0, len(tokens), self.BATCH):
            part = tokens[start : start + self.BATCH]
            batch = self.batch
            batch.n_tokens = len(part)
            for at, (token, position, row, wanted) in enumerate(part):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
            assert llama.llama_decode(self.context, batch) == 0
            for at, (*_, wanted) in enumerate(part):
                if wanted:
                    logits = llama.llama_get_logits_ith(self.context, at)
                    yield numpy.ctypeslib.as_array(logits, (self.vocabulary,))

    def clear(self):
        llama.llama_memory_clear(self.memory, False)

    def copy(self, row, to):
        llama.llama_memory_seq_cp(self.memory, row, to, -1, -1)


def score(work, path):
    groups = {}
    for example in work["examples"]:
        for sequence in example:
            prompt, response = sequence["ids"][: sequence["prompt"]], sequence["ids"][sequence["prompt"] :]
            groups.setdefault(tuple(prompt), []).append(response)
    most = max(map(len, groups.values()))
    cells = max(len(prompt) + sum(map(len, responses)) for prompt, responses in groups.items())
    model = Model(path, work, most, cells + 256)

    def once():
        total = 0.0
        for prompt, responses in groups.items():
            model.clear()
            # All responses' first tokens are predicted after the prompt's last.
            (first,) = model.read([(token, at, 0, at + 1 == len(prompt)) for at, token in enumerate(prompt)])
            total += sum(float(first[response[0]]) for response in responses)
            total -= len(responses) * float(numpy.log(numpy.exp(first - first.max()).sum()) + first.max())
            for row in range(1, len(responses)):
                model.copy(0, row)
            tokens = [
                (token, len(prompt) + at, row, True)
                for row, response in enumerate(responses)
                for at, token in enumerate(response[:-1])
            ]
            targets = [target for response in responses for target in response[1:]]
            for target, logits in zip(targets, model.read(tokens)):
                total += float(logits[target] - logits.max() - numpy.log(numpy.exp(logits - logits.max()).sum()))
        return total

    return once


def sample(work, path):
    prefix, prompts, new = work["prefix"], work["prompts"], work["new_tokens"]
    model = Model(path, work, len(prompts), len(prefix) + sum(len(prompt) + new for prompt in prompts) + 256)

    def once():
        model.clear()
        if prefix:
            list(model.read([(token, at, 0, False) for at, token in enumerate(prefix)]))
            for row in range(1, len(prompts)):
                model.copy(0, row)
        tokens = [
            (token, len(prefix) + at, row, at + 1 == len(prompt))
            for row, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        out = [[int(logits.argmax())] for logits in model.read(tokens)]
        places = [len(prefix) + len(prompt) for prompt in prompts]
        for step in range(new - 1):
            tokens = [(row[-1], place + step, at, True) for at, (row, place) in enumerate(zip(out, places))]
            for row, logits in zip(out, model.read(tokens)):
                row.append(int(logits.argmax()))
        return out

    return once


def main():
    work = json.load(open(sys.argv[1]))
    path = f"{work['model']}/model.gguf"
    convert(work["model"], path)
    once = {"score": score, "sample": sample}[work["kind"]](work, path)
    print(json.dumps({"ready": f"llama.cpp in llama-cpp-python {llama.__version__}", "result": once()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = once()
        print(json.dumps({"seconds": time.perf_counter() - start, "result": result}), flush=True)
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    print(json.dumps({"peak_kib": int(peak.split()[1])}), flush=True)
    os._exit(0)


main()
