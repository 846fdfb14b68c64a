"""Files of tokenizers besides Hugging Face's: where a tokenizer lies, which format it is in, and how that is read."""
