"""The policy: vision-language model, chat prompt, LoRA, captions."""
