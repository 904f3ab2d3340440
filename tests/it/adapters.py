"""The other side of adapters.rs: opens adapters with peft, and makes one.

    python adapters.py open DIRECTORY    logits with the adapter, merged and not, to theirs.json
    python adapters.py make DIRECTORY    a model and an adapter that peft wrote
"""

import importlib.util
import json
import pathlib
import sys

if importlib.util.find_spec("peft") is None:
    sys.exit(77)

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()


def open_ours(directory):
    case = json.load(open(directory / "case.json"))
    base = logits(load(directory / "beside"), case["ids"])
    model = PeftModel.from_pretrained(load(directory / "beside"), directory / "beside" / "adapter").eval()
    config = model.peft_config["default"]
    theirs = {
        "base": base,
        "adapted": logits(model, case["ids"]),
        "unloaded": logits(model.merge_and_unload(), case["ids"]),
        "merged": logits(load(directory / "merged"), case["ids"]),
        "rank": config.r,
        "targets": sorted(config.target_modules),
    }
    (directory / "theirs.json").write_text(json.dumps(theirs))


def make(directory):
    torch.manual_seed(3)
    form = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(form).save_pretrained(directory / "model")
    settings = LoraConfig(r=6, lora_alpha=9, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load(directory / "model"), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(directory / "model" / "adapter")
    ids = [(at * at * 31 + at * 17 + 5) % 97 for at in range(30)]
    (directory / "theirs.json").write_text(json.dumps({"ids": ids, "adapted": logits(model.eval(), ids)}))


what, where = sys.argv[1], pathlib.Path(sys.argv[2])
{"open": open_ours, "make": make}[what](where)
