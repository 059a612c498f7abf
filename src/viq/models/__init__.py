"""The models: encoder, quantizer, decoders, and the tokenizer that joins them."""
