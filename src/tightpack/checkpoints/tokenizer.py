"""Text to token ids and back, and the model's chat template, over Hugging Face's tokenizers library."""
