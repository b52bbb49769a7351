"""A checkpoint of each family, as from the hub but tiny: its own classes, random weights.

Processors are built without a hub: each family's special tokens and form of a conversation around a
byte-level BPE of a few words. Tiles are 56 pixels wide, patches 14, and an image is 4 tokens or 16.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from .checkpoints import make_captions_end

EDGE, PATCH, WIDTH = 56, 14, 32
WORDS = """a the red blue dog cat on in grass two people photo of image . ? is there Is there Answer
Describe yes Yes no No or User: Assistant: user assistant model You are a helpful system"""
PAD = "<|pad|>"
CHATML = (  # Qwen's, and of those that took over its language models
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS = (  # BEGIN: <|im_start|> or Llama's <|begin_of_text|>
    "BEGIN{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA = (
    "<bos>{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": EDGE,
    "patch_size": PATCH,
}
QWEN_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
IDEFICS_END = "<end_of_utterance>"
IDEFICS_SPECIAL = [IDEFICS_END, "<fake_token_around_image>", "<image>", "<global-img>"]
IDEFICS_SPECIAL += [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
PIXELS = {"shortest_edge": EDGE * EDGE, "longest_edge": EDGE * EDGE}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def tokenizer(special, eos, bos=None, **named):
    """Special tokens first, then bytes and WORDS; with `bos` before a text, as Llama's has it."""
    special = [PAD, *([bos] if bos else []), *special]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f"{lead}{w}" for w in WORDS.split() for lead in ("", " ")], trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens=named,
    )


def text(tokenizer, **more):
    """The language model's part of a config."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")}
    return {**TEXT, **ids, "bos_token_id": tokenizer.bos_token_id, **more} | {
        "vocab_size": len(tokenizer)
    }


def idefics(config, image_processor, processor, tokenizer, begin, *video, end=None):
    """Of Idefics3 and what came of it; end: of a turn, where it is another than Instruct's."""
    template = IDEFICS.replace("BEGIN", begin).replace("<end_of_utterance>", end or IDEFICS_END)
    edges = {"size": {"longest_edge": 4 * EDGE}, "max_image_size": {"longest_edge": EDGE}}
    processor = processor(
        image_processor(**edges), tokenizer, *video, image_seq_len=4, chat_template=template
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    language = text(tokenizer, model_type="llama")
    parts = {"text_config": language, "vision_config": TOWER, "scale_factor": 2}
    return config(image_token_id=image, pad_token_id=tokenizer.pad_token_id, **parts), processor


def smolvlm_base():
    """SmolVLM-Base, of every size: a turn ends with the end of a text."""
    own = tokenizer(["<|endoftext|>", "<|im_start|>", *IDEFICS_SPECIAL], "<|endoftext|>")
    classes = Idefics3Config, Idefics3ImageProcessor, Idefics3Processor
    return idefics(*classes, own, "<|im_start|>", end="<|endoftext|>")


def smolvlm():
    """SmolVLM-Instruct, of every size."""
    own = tokenizer(["<|im_start|>", *IDEFICS_SPECIAL], "<end_of_utterance>")
    return idefics(Idefics3Config, Idefics3ImageProcessor, Idefics3Processor, own, "<|im_start|>")


def smolvlm2():
    """SmolVLM2."""
    own = tokenizer(["<|im_start|>", *IDEFICS_SPECIAL, "<video>"], "<end_of_utterance>")
    classes = SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
    return idefics(*classes, own, "<|im_start|>", SmolVLMVideoProcessor())


def idefics3():
    """Idefics3, whose tokenizer puts Llama's BOS before a text."""
    own = tokenizer([*IDEFICS_SPECIAL, "<|end_of_text|>"], "<|end_of_text|>", "<|begin_of_text|>")
    classes = Idefics3Config, Idefics3ImageProcessor, Idefics3Processor
    return idefics(*classes, own, "<|begin_of_text|>")


def qwen(config, processor, video, vision, **more):
    """Of Qwen2-VL and its successors."""
    own = tokenizer(QWEN_SPECIAL, "<|im_end|>")
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    sizes = {"patch_size": PATCH, "merge_size": 2, "size": PIXELS}
    processor = processor(
        Qwen2VLImageProcessor(**sizes), own, video(**sizes), chat_template=template
    )
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{key}_token_id": own.convert_tokens_to_ids(name) for key, name in names.items()}
    language = text(own, rope_parameters=MROPE, **more)
    vision = {"depth": 2, "num_heads": 2, "patch_size": PATCH, **vision}
    return config(text_config=language, vision_config=vision, **ids), processor


def qwen2vl():
    """Qwen2-VL."""
    vision = {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    return qwen(Qwen2VLConfig, Qwen2VLProcessor, Qwen2VLVideoProcessor, vision)


def qwen2_5vl():
    """Qwen2.5-VL: windows in its tower."""
    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "out_hidden_size": WIDTH}
    vision |= {"window_size": 2 * PATCH, "fullatt_block_indexes": [1]}
    return qwen(Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, vision)


def qwen3vl():
    """Qwen3-VL: features of an earlier layer of the tower go into the second layer."""
    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return qwen(Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor, vision)


def llava_onevision():
    """LLaVA-OneVision: SigLIP before Qwen2, grids of tiles up to 2 × 2."""
    own = tokenizer(["<|im_start|>", "<|im_end|>", "<image>", "<video>"], "<|im_end|>")
    grids = [[EDGE * r, EDGE * c] for r in (1, 2) for c in (1, 2)]
    size = {"height": EDGE, "width": EDGE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grids),
        own,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER},
        text_config=text(own, model_type="qwen2"),
        image_token_index=own.convert_tokens_to_ids("<image>"),
        video_token_index=own.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    return config, processor


def internvl():
    """InternVL (-hf): its own tower before Qwen2, up to four tiles and the whole image."""
    special = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    own = tokenizer(special, "<|im_end|>", **named)
    size = {"height": EDGE, "width": EDGE}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        own,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n"),
    )
    config = InternVLConfig(
        vision_config=TOWER | {"image_size": [EDGE, EDGE], "patch_size": [PATCH, PATCH]},
        text_config=text(own, model_type="qwen2"),
        image_token_id=own.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, processor


def gemma3():
    """Gemma 3: SigLIP before layers of which one has a window of 8 tokens."""
    special = ["<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
    special.append("<image_soft_token>")
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    own = tokenizer(special, "<eos>", "<bos>", **named, image_token="<image_soft_token>")
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": EDGE, "width": EDGE}),
        own,
        image_seq_length=4,
        chat_template=GEMMA,
    )
    windows = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        vision_config=TOWER | {"vision_use_head": False},
        text_config=text(own, query_pre_attn_scalar=16, **windows),
        mm_tokens_per_image=4,
        boi_token_index=own.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=own.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=own.convert_tokens_to_ids("<image_soft_token>"),
    )
    return config, processor


FIRST = smolvlm, smolvlm_base, smolvlm2, idefics3, qwen2vl, qwen2_5vl, qwen3vl
BUILDERS = {builder.__name__: builder for builder in (*FIRST, llava_onevision, internvl, gemma3)}


def without_num2words(monkeypatch):
    """SmolVLM2's processor writes the number of a video's frames with it, and nothing of images."""
    if processing_smolvlm.num2words is None:
        monkeypatch.setattr(processing_smolvlm, "num2words", str)


def write(family, folder):
    """Write the family's checkpoint to a folder: matrices so wide that all depends on the image."""
    torch.manual_seed(0)
    config, processor = BUILDERS[family]()
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, WIDTH**-0.5)
    make_captions_end(model, processor)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
